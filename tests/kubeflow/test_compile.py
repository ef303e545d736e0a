"""The compiled specification, its parameters, and starting a run of it."""

import http.server
import json
import re
import threading

import pytest
import yaml
from kfp import components
from kubeflow.local_kfp import LocalKubeflow
from mlet_tf.pipeline.container_entrypoint import with_artifact_types
from mlet_tf.pipeline.kubeflow_runner import PARAMETERS, compile_pipeline

from mlet_tf.config import load_config
from mlet_tf.errors import InputError

IMAGE = "registry.example/mlet-tf:1"


def test_command_writes_a_package_that_kfp_loads(compiled, command, tmp_path):
    package = tmp_path / "out" / "pipeline.yaml"
    code, out, _ = command(
        "compile", "--config", compiled.config, "--runner", "kubeflow", "--image", "other:2", "-o", package,
        *compiled.options(),
    )  # fmt: skip
    assert code == 0 and "image=other:2" in out
    assert [path.name for path in package.parent.iterdir()] == ["pipeline.yaml"]
    loaded = components.load_component_from_file(str(package))
    inputs = loaded.component_spec.inputs
    assert set(inputs) == {*PARAMETERS, "image"}
    assert inputs["image"].default == "other:2" and inputs["data_location"].default == "/nowhere"
    assert inputs["hidden_dim"].default == 8 and inputs["hidden_dim"].type == "Integer"
    assert inputs["tables_learning_rate"].default == 9 and inputs["tables_learning_rate"].type == "Float"


def test_specification_is_one_that_kubeflow_takes(compiled):
    """What the API server and the compiler to Argo refuse or mistake."""
    spec = compiled.spec
    assert spec["schemaVersion"] == "2.1.0" and spec["defaultPipelineRoot"] == "gs://bucket/root"
    kinds = {kind for executor in spec["deploymentSpec"]["executors"].values() for kind in executor}
    assert kinds == {"container"}  # There is no resolver.
    allowed = re.compile(r"\{\{\$\}\}|\{\{\$\.inputs\.parameters\['image'\]\}\}")
    assert "{{" not in allowed.sub("", json.dumps(spec))  # Argo would take it for a variable of its own.
    tasks = spec["root"]["dag"]["tasks"]
    for name, task in tasks.items():
        producers = {
            source["taskOutputArtifact"]["producerTask"]
            for source in task["inputs"].get("artifacts", {}).values()
        }
        assert producers <= set(task.get("dependentTasks", [])), name


def test_containers_run_installed_modules(compiled):
    executors = compiled.spec["deploymentSpec"]["executors"]
    for executor in executors.values():
        container = executor["container"]
        assert container["command"] == ["python", "-P", "-m", "mlet_tf.pipeline.container_entrypoint"]
        assert "module_file" not in json.dumps(container)
    args = executors["WeightCollapser_executor"]["container"]["args"]
    assert (
        args[args.index("--executor_class_path") + 1]
        == "mlet_tf.components.weight_collapser.executor.Executor"
    )


def test_every_parameter_reaches_its_container(compiled):
    run = LocalKubeflow(compiled.spec, compiled.folder, {**compiled.parameters, "image": "third:3"})
    trainer = run.executor_input_values("Trainer")
    assert {name: trainer[name] for name in ("hidden_dim", "max_steps", "tables_learning_rate")} == {
        "hidden_dim": 16,
        "max_steps": 0,
        "tables_learning_rate": 0.05,
    }
    assert trainer["dense_learning_rate"] == 0.05  # The default, as the configuration has it.
    location = run.executor_input_values("ClickLogExampleGen")["input_base"]
    assert location == compiled.parameters["data_location"]
    assert {run.image(name) for name in run.order()} == {"third:3"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"hiden_dim": 4}, "no parameter hiden_dim"), ({"hidden_dim": "4"}, "hidden_dim is of another type")],
)
def test_parameters_are_checked_by_name_and_type(compiled, parameters, message):
    with pytest.raises(ValueError, match=message):
        LocalKubeflow(compiled.spec, compiled.folder, parameters)


def test_resources_retries_and_caching_by_node(compiled):
    kubeflow = {
        "defaults": {"cpu": 2, "memory_gb": 8, "retries": 2},
        "nodes": {
            "Trainer": {"cpu": 7.5, "accelerator": "nvidia.com/gpu", "accelerator_count": 2, "retries": 0},
            "Transform": {"cache": False},
        },
    }
    more = [f"kubeflow.{key}={json.dumps(value)}" for key, value in kubeflow.items()]
    spec = compile_pipeline(load_config(compiled.config, [*compiled.overrides, *more]))
    run = LocalKubeflow(spec, compiled.folder)
    trainer = run.executor("Trainer").container.resources
    assert (trainer.cpu_limit, trainer.resource_cpu_request, trainer.resource_memory_limit) == (
        7.5,
        "7.5",
        "8G",
    )
    accelerator = trainer.accelerator
    assert (accelerator.type, accelerator.count) == ("nvidia.com/gpu", 2)
    assert (accelerator.resource_type, accelerator.resource_count) == ("nvidia.com/gpu", "2")
    example_gen = run.executor("ClickLogExampleGen").container.resources
    assert example_gen.memory_limit == 8 and not example_gen.HasField("accelerator")
    tasks = run.spec.root.dag.tasks
    assert tasks["AtomicPusher"].retry_policy.max_retry_count == 2
    assert not tasks["Trainer"].HasField("retry_policy")
    cached = {name for name, task in tasks.items() if task.caching_options.enable_cache}
    assert set(tasks) - cached == {"ClickLogExampleGen", "Transform"}


def test_a_compressed_model_is_what_is_judged_and_pushed(compiled):
    more = "compress={budget: {max_auc_drop: 0.001}, fine_tune: 0.1}"
    spec = compile_pipeline(load_config(compiled.config, [*compiled.overrides, more]))
    assert "{{" not in json.dumps(spec["root"]["dag"]["tasks"]["ModelCompressor"])
    run = LocalKubeflow(spec, compiled.folder, {**compiled.parameters, "dense_learning_rate": 0.125})
    tasks = run.spec.root.dag.tasks

    def producer(task, key):
        source = tasks[task].inputs.artifacts[key].task_output_artifact
        return source.producer_task, source.output_artifact_key

    compressed = ("ModelCompressor", "compressed_model")
    assert producer("ModelCompressor", "model") == ("WeightCollapser", "collapsed_model")
    for task in ("GatedEvaluator", "ServingValidator", "AtomicPusher"):
        assert producer(task, "model") == compressed, task
    assert producer("GatedEvaluator", "uncollapsed_model") == ("Trainer", "model")
    values = run.executor_input_values("ModelCompressor")
    assert json.loads(values["compress"])["budget"]["max_auc_drop"] == 0.001
    assert values["work"] == str(compiled.folder / "work")
    assert (
        values["dense_learning_rate"] == run.executor_input_values("Trainer")["dense_learning_rate"] == 0.125
    )
    assert run.executor_input_values("GatedEvaluator")["compress"] == values["compress"]


def test_without_a_budget_nothing_is_compressed(compiled):
    run = LocalKubeflow(compiled.spec, compiled.folder, compiled.parameters)
    assert "ModelCompressor" not in run.spec.root.dag.tasks
    assert run.executor_input_values("GatedEvaluator")["compress"] == "null"


def test_a_baseline_is_imported(compiled):
    more = "kubeflow.baseline_model=gs://bucket/blessed"
    spec = compile_pipeline(load_config(compiled.config, [*compiled.overrides, more]))
    run = LocalKubeflow(spec, compiled.folder, {"baseline_model": "gs://bucket/other"})
    imported = run.run_task("LastBlessedModel")
    assert imported.outputs["model"].uri == "gs://bucket/other"
    baseline = run.spec.root.dag.tasks["GatedEvaluator"].inputs.artifacts["baseline_model"]
    assert baseline.task_output_artifact.producer_task == "LastBlessedModel"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kubeflow.image=null", "'kubeflow.image' is not set"),
        ("data.train=runs/log.tsv", "'data.train' should be a URI or an absolute path"),
        ("kubeflow.pipeline_root=minio://bucket/root", "should be a gs:// or s3:// URI"),
        ("serving.push_to=null", "'serving.push_to' is not set"),
        ("serving.infra_validation=model_server", "has no InfraValidator"),
        ("kubeflow.nodes={Trainr: {cpu: 1}}", "Did you mean 'Trainer'?"),
        ("kubeflow.nodes={Trainer: {cpus: 1}}", "unknown key 'kubeflow.nodes.Trainer.cpus'"),
        ("kubeflow.defaults={accelerator: nvidia.com/gpu}", "'accelerator_count' go together"),
        ("kubeflow.defaults={cpu: 0}", "'kubeflow.defaults.cpu' should be a number above 0"),
        ("name=Little_Run", "'name' should be lower-case"),
        ("kubeflow.token=abc", "unknown key 'kubeflow.token'"),
    ],
)
def test_mistakes_end_with_one_line(compiled, command, tmp_path, override, message):
    package = tmp_path / "pipeline.yaml"
    code, _, err = command("compile", "--config", compiled.config, "-o", package, *compiled.options(override))
    assert code == 2 and message in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_all_missing_keys_are_told_at_once(command, tmp_path):
    """A line for each, not one a call."""
    (tmp_path / "bare.yaml").write_text("name: Bare\n")
    code, _, err = command("compile", "--config", tmp_path / "bare.yaml", "-o", tmp_path / "pipeline.yaml")
    assert code == 2
    assert err.removeprefix("Error: ").splitlines() == [
        "'kubeflow.image' is not set; Kubeflow needs it",
        "'kubeflow.pipeline_root' is not set; Kubeflow needs it",
        "'serving.push_to' is not set; Kubeflow needs it",
        "'data.train' is not set; Kubeflow needs it",
        "'name' should be lower-case letters, digits and hyphens on Kubeflow. Received: 'Bare'",
    ]
    assert not (tmp_path / "pipeline.yaml").exists()


def test_lost_artifact_types_come_from_the_component(compiled):
    """Kubeflow hands input artifacts over with an empty schema, of which TFX can make nothing."""
    definitions = compiled.spec["components"]["WeightCollapser"]["inputDefinitions"]
    found = {"artifacts": [{"uri": "gs://x", "type": {"instanceSchema": ""}}]}
    typed = with_artifact_types({"inputs": {"artifacts": {"model": found}}}, definitions)
    (artifact,) = typed["inputs"]["artifacts"]["model"]["artifacts"]
    assert yaml.safe_load(artifact["type"]["instanceSchema"])["title"] == "tfx.Model"
    other = {"artifacts": [{"uri": "gs://x", "type": {"schemaTitle": "system.Model"}}]}
    with_artifact_types({"inputs": {"artifacts": {"model": other}}}, definitions)
    assert other["artifacts"][0]["type"] == {"schemaTitle": "system.Model"}


@pytest.fixture
def api_server():
    """Answers what a client needs to start a run, and keeps what it was sent."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer({"multi_user": False} if self.path.endswith("healthz") else {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.path, self.headers.get("Authorization"), body))
            if self.headers.get("Authorization") == "Bearer wrong":
                self._answer({"error": "who are you?"}, 401)
            else:
                self._answer({"experiment_id": "e-1"} if "experiments" in self.path else {"run_id": "r-1"})

        def _answer(self, body, status=200):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


@pytest.fixture
def package(compiled, tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(compiled.spec))
    return path


def test_submit_starts_a_run(api_server, package, command, monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", "secret-token")
    endpoint, received = api_server
    code, out, err = command(
        "submit", "--endpoint", endpoint, "--package", package, "--parameter", "hidden_dim=32",
        "--parameter", "data_location=gs://b/logs", "--experiment", "tables", "--service-account", "trainer",
    )  # fmt: skip
    assert code == 0, err
    assert out == f"{endpoint}/#/runs/details/r-1\n"
    (path, token, run) = received[-1]
    assert path == "/apis/v2beta1/runs" and token == "Bearer secret-token"
    assert run["runtime_config"]["parameters"] == {"hidden_dim": 32, "data_location": "gs://b/logs"}
    assert run["runtime_config"]["pipeline_root"] == "gs://bucket/root"
    assert run["service_account"] == "trainer" and run["experiment_id"] == "e-1"
    assert run["pipeline_spec"]["schemaVersion"] == "2.1.0"
    assert "secret-token" not in json.dumps(run) + out + err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parameter", "hiden_dim=3"], "no parameter 'hiden_dim'. Did you mean 'hidden_dim'?"),
        (["--parameter", "hidden_dim=big"], "'hidden_dim' should be an integer. Received: 'big'"),
        (["--parameter", "hidden_dim"], "expected NAME=VALUE"),
        (["--package", "absent.yaml"], "absent.yaml cannot be read: No such file"),
        (["--endpoint", "http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached"),
    ],
)
def test_submit_says_what_is_wrong(api_server, package, command, options, message):
    endpoint, received = api_server
    code, _, err = command("submit", "--endpoint", endpoint, "--package", package, *options)
    assert code == 2 and message in err and "Traceback" not in err
    assert received == []


def test_submit_without_the_right_token(api_server, package, command, monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", "wrong")
    code, _, err = command("submit", "--endpoint", api_server[0], "--package", package)
    assert code == 2 and "answered 401" in err and "who are you?" in err and "wrong" not in err


def test_a_file_that_is_no_package(api_server, command, tmp_path):
    (tmp_path / "c.yaml").write_text("name: x\n")
    code, _, err = command("submit", "--endpoint", api_server[0], "--package", tmp_path / "c.yaml")
    assert code == 2 and "is no compiled pipeline" in err


def test_settings_of_a_run_are_checked_in_the_container():
    from mlet_tf.components.settings import settings_of, with_settings

    rates = {name: {"learning_rate": 0.1} for name in ("tables", "projections", "dense")}
    config = {"model": {"hidden_dim": None, "output_dim": 4}, "train": {"max_steps": 7, **rates}}
    settings = settings_of(config)
    assert settings["hidden_dim"] == 0 and settings["max_steps"] == 7
    changed = with_settings(config, {**settings, "hidden_dim": 16, "max_steps": 0})
    assert changed["model"]["hidden_dim"] == 16 and changed["train"]["max_steps"] is None
    for bad in ({"hidden_dim": 2}, {"max_steps": -1}, {"dense_learning_rate": 0.0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            with_settings(config, {**settings, **bad})


def test_the_baseline_is_trained_with_the_settings_of_the_run(compiled):
    more = "compress={budget: {ratio: 4}, baseline: true}"
    spec = compile_pipeline(load_config(compiled.config, [*compiled.overrides, more]))
    settings = {"max_steps": 3, "dense_learning_rate": 0.125, "tables_learning_rate": 0.5}
    run = LocalKubeflow(spec, compiled.folder, {**compiled.parameters, **settings})
    trainer, baseline = (run.executor_input_values(node) for node in ("Trainer", "BaselineTrainer"))
    assert (
        {name: baseline[name] for name in settings} == {name: trainer[name] for name in settings} == settings
    )
    tasks = run.spec.root.dag.tasks
    sources = {
        ("BaselineTrainer", "compression"): ("ModelCompressor", "report"),
        ("GatedEvaluator", "direct_baseline_model"): ("BaselineTrainer", "model"),
    }
    for (task, key), expected in sources.items():
        source = tasks[task].inputs.artifacts[key].task_output_artifact
        assert (source.producer_task, source.output_artifact_key) == expected
