"""The code version of a node: it sees all code that the node runs, and no other."""

from pathlib import Path

import pytest
from mlet_tf.pipeline.code_version import code_version


@pytest.mark.parametrize(
    ("module", "file", "changes"),
    [
        ("mlet_tf.training.trainer", "trainer.py", True),
        ("mlet_tf.training.trainer", "packed_rows.py", True),  # By way of others.
        ("mlet_tf.training.worker", "dlrm.py", True),
        (
            "mlet_tf.components.serving_validator",
            "check.py",
            True,
        ),  # A package stands for all of its modules.
        ("mlet_tf.components.weight_collapser", "quantize.py", True),
        ("mlet_tf.components.model_compressor", "allocator.py", True),
        ("mlet_tf.components.transform", "vocabulary.py", True),
        ("mlet_tf.components.transform", "loop.py", False),
        ("mlet_tf.training.trainer", "local_runner.py", False),
    ],
)
def test_it_changes_with_the_code_that_is_needed(monkeypatch, module, file, changes):
    before, read_bytes = code_version(module), Path.read_bytes

    def edited(path: Path) -> bytes:
        return read_bytes(path) + (b"# Edited." if path.name == file else b"")

    monkeypatch.setattr(Path, "read_bytes", edited)
    assert (code_version(module) != before) == changes


def test_modules_of_others_are_refused():
    with pytest.raises(ValueError, match=r"Received: mlet_tf\.nothing"):
        code_version("mlet_tf.nothing")
