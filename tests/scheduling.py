"""Which worker runs which test file, and when: a run with `pytest -n` takes as long as its last worker."""

from pathlib import Path

import pytest

# Files on the one run of the pipeline, `finished_run`: the worker that gets them makes it, once.
ON_ONE_RUN = (
    "e2e/test_commands.py",
    "e2e/test_pipeline.py",
    "e2e/test_packing.py",
    "e2e/test_shrink.py",
    "e2e/test_compressed_run.py",
    "components/test_serving_validator.py",
    "training/test_baseline.py",
)
# Other files that take long, about the longest first: short files at the end leave no worker waiting for another.
LONG = (
    "models/test_dlrm.py",
    "kubeflow/test_execution.py",
    "layers/test_embedding_collection.py",
    "test_package.py",
    "layers/test_mlet_embedding.py",
    "optimizers/test_tensorflow.py",
    "components/test_statistics_gen.py",
    "layers/test_training.py",
    "serving/test_server.py",
    "collapse/test_collapse.py",
    "collapse/test_quantize.py",
    "serving/test_push.py",
    "e2e/test_bad_input.py",
    "training/test_trainer.py",
    "components/test_click_log_example_gen.py",
    "e2e/test_paths.py",
    "training/test_distributed.py",
    "features/test_preprocessing.py",
    "serving/test_signatures.py",
    "experiments/test_sweep.py",
    "compression/test_compress_model.py",
)
_ORDER = {name: number for number, name in enumerate((*ON_ONE_RUN, *LONG))}


def _name(path: str | Path) -> str:
    """A test file's path below `tests`."""
    return str(path).rpartition("tests/")[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of long files first; the order is otherwise kept."""
    items.sort(key=lambda item: _ORDER.get(_name(item.path), len(_ORDER)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """`--dist loadfile`, in which the files on the one run count as one file and the order of the files is kept."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneRun(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return ON_ONE_RUN[0] if _name(file) in ON_ONE_RUN else file

    config.option.loadscopereorder = False
    return OneRun(config, log)
