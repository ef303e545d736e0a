"""The compiled specification executed: each task's own container command, from the log to an answered query."""

import json
from pathlib import Path

import numpy as np
import pytest
from kubeflow.local_kfp import LocalKubeflow, TaskFailedError
from mlet_tf.pipeline.kubeflow_runner import compile_pipeline

from mlet_tf.compression import COMPRESSION_FILE
from mlet_tf.compression.files import FRONTIER_FILE
from mlet_tf.config import load_config
from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.reading import read_log
from mlet_tf.gate import GATE_FILE
from mlet_tf.metrics import METRICS
from mlet_tf.serving import CTRClient, LocalServer, ServeOptions


def _metrics(run: LocalKubeflow) -> dict[str, dict[str, float]]:
    """Metrics of all rows, by model."""
    gate = json.loads(Path(run.done["GatedEvaluator"].outputs["evaluation"].uri, GATE_FILE).read_text())
    return {model: next(row for row in rows if not row["slice"]) for model, rows in gate["metrics"].items()}


def test_first_containers_on_artifacts_that_lost_their_type(compiled, tmp_path):
    run = LocalKubeflow(compiled.spec, tmp_path, compiled.parameters)
    done = run.run(upto="StatisticsGen")
    assert done["ClickLogExampleGen"].outputs["examples"].properties["rows_read"] == 3000
    statistics = Path(done["StatisticsGen"].outputs["statistics"].uri)
    assert {path.name for path in statistics.iterdir()} >= {"Split-train", "Split-eval"}


def test_a_mistake_in_a_container_is_one_line_of_its_log(compiled, tmp_path):
    run = LocalKubeflow(compiled.spec, tmp_path, {"data_location": str(tmp_path)})
    with pytest.raises(TaskFailedError) as failed:
        run.run(upto="ClickLogExampleGen")
    assert str(failed.value).rstrip().splitlines()[-1].startswith("Error: No file found at")
    assert "Traceback" not in str(failed.value)


@pytest.fixture(scope="module")
def executed(compiled, tmp_path_factory) -> LocalKubeflow:
    """The whole pipeline."""
    run = LocalKubeflow(compiled.spec, tmp_path_factory.mktemp("bucket"), compiled.parameters)
    run.run()
    print("\n" + "\n".join(f"{name:24} {task.seconds:6.1f} s" for name, task in run.done.items()))
    return run


@pytest.mark.slow
class TestWholePipeline:
    def test_every_task_ran_in_its_own_container(self, executed):
        assert set(executed.done) == set(executed.spec.root.dag.tasks)
        assert all(task.log is not None for task in executed.done.values())
        assert len(executed.done) >= 10

    def test_metrics_are_those_of_the_local_runner(self, executed, finished_run):
        metrics = _metrics(executed)
        for model, expected in finished_run.result["metrics"].items():
            found = {metric: metrics[model][metric] for metric in METRICS}
            assert found == pytest.approx(expected, rel=1e-9), model

    def test_pushed_model_answers_as_the_local_runners_does(self, executed, finished_run, compiled):
        pushed = executed.done["AtomicPusher"].outputs["pushed_model"].properties
        assert pushed["pushed"] == 1
        assert pushed["pushed_destination"] == str(compiled.folder / "serving" / "1")
        rows = next(iter(read_log(str(finished_run.log), CRITEO, columns=CRITEO.raw_features))).slice(0, 20)
        answers = []
        for version in (pushed["pushed_destination"], finished_run.result["pushed"]):
            options = ServeOptions(model_base_path=str(Path(version).parent), port=0, rest_api_port=0)
            with LocalServer(options) as server:
                address = f"127.0.0.1:{server.rest_api_port}"
                with CTRClient(address, protocol="rest", schema=CRITEO) as client:
                    client.wait_until_ready()
                    answers.append(client.predict(rows))
        assert answers[0].shape == (20,) and answers[0].std() > 1e-3
        np.testing.assert_allclose(*answers, rtol=0, atol=1e-6)

    def test_gate_compares_with_an_imported_model(self, executed, compiled, tmp_path):
        blessed = executed.done["WeightCollapser"].outputs["collapsed_model"].uri
        more = f"kubeflow.baseline_model={blessed}"
        spec = compile_pipeline(load_config(compiled.config, [*compiled.overrides, more]))
        run = LocalKubeflow(spec, tmp_path, compiled.parameters)
        run.done = {
            name: task
            for name, task in executed.done.items()
            if name not in ("GatedEvaluator", "AtomicPusher")
        }
        run.run(upto="GatedEvaluator")
        metrics = _metrics(run)
        assert metrics["last_blessed"] == metrics["collapsed"]

    def test_the_compressor_runs_in_a_container(self, executed, compiled, tmp_path):
        """And its SavedModel is one that the next containers take: the gate compares it with the trained one."""
        more = "compress={budget: {ratio: 4}}"
        spec = compile_pipeline(load_config(compiled.config, [*compiled.overrides, more]))
        run = LocalKubeflow(spec, tmp_path, compiled.parameters)
        run.done = {
            name: task
            for name, task in executed.done.items()
            if name not in ("GatedEvaluator", "ServingValidator", "AtomicPusher")
        }
        outputs = run.run(upto="GatedEvaluator")["ModelCompressor"].outputs
        report = json.loads(Path(outputs["report"].uri, COMPRESSION_FILE).read_text())
        size = report["bytes_after"]
        assert size["rows"] + size["addresses"] <= report["bytes_before"]["rows"] / 4
        assert Path(outputs["report"].uri, FRONTIER_FILE).exists()
        assert set(_metrics(run)) == {"compressed", "uncollapsed"}

    def test_example_gens_driver_where_the_platform_runs_it(self, executed, compiled, tmp_path):
        run = LocalKubeflow(compiled.spec, tmp_path, compiled.parameters, pre_cache_check=True)
        task = run.run(upto="ClickLogExampleGen")["ClickLogExampleGen"]
        assert "Calculated fingerprint: split:all,num_files:1" in task.log.read_text()
        expected = executed.done["ClickLogExampleGen"].outputs["examples"].properties
        assert task.outputs["examples"].properties == expected

    def test_a_setting_that_does_not_fit_ends_the_training(self, executed, compiled, tmp_path):
        run = LocalKubeflow(compiled.spec, tmp_path, {**compiled.parameters, "hidden_dim": 2})
        run.done = {name: task for name, task in executed.done.items() if name != "Trainer"}
        with pytest.raises(TaskFailedError, match=r"Error: 'hidden_dim' \(k=2\) should be at least"):
            run.run(upto="Trainer")
