"""Compiles the pipeline for Kubeflow Pipelines v2; see `docs/kubeflow.md`.

TFX's KubeflowV2DagRunner makes the PipelineSpec. What it lacks is added to the result: default values of the
pipeline's parameters, resources, retries, caching by node and the pipeline root.
"""

import yaml
from mlet_tf.components.settings import SETTINGS
from mlet_tf.pipeline.checks import check_kubeflow
from mlet_tf.pipeline.pipeline import LAST_BLESSED, create_pipeline
from tfx import v1 as tfx
from tfx.dsl.components.base import base_node

from mlet_tf.config import NodeConfig, PipelineConfig
from mlet_tf.errors import InputError, nearest
from mlet_tf.outputs import output_file
from mlet_tf.storage import join, writing, written_aside
from mlet_tf.types import JsonObject, JsonValue

# Parameters of the pipeline: the node and the execution property that each one sets.
PARAMETERS = {
    "data_location": ("ClickLogExampleGen", "input_base"),
    **{name: ("Trainer", name) for name in SETTINGS},
}
IMAGE = "image"
BASELINE = "baseline_model"
DIRECT_BASELINE = "BaselineTrainer"

_COMMAND = ["python", "-P", "-m", "mlet_tf.pipeline.container_entrypoint"]
_EXAMPLE_GEN = "ClickLogExampleGen"
_COMPRESSOR, _DENSE_RATE = "ModelCompressor", "dense_learning_rate"


def compile_pipeline(config: PipelineConfig) -> JsonObject:
    """Makes the PipelineSpec.

    Args:
        config: The resolved configuration; `kubeflow.image`, `kubeflow.pipeline_root`,
            `serving.push_to` and `data.train` must be set.

    Returns:
        The PipelineSpec (schema 2.1.0) as plain values.

    Raises:
        InputError: If a key is missing, names something that containers cannot reach, or has no
            counterpart on Kubeflow.
    """
    check_kubeflow(config)
    kubeflow = config.kubeflow
    pipeline = create_pipeline(
        config,
        pipeline_root=kubeflow.pipeline_root,
        work=kubeflow.work or join(kubeflow.pipeline_root, "work"),
        last_blessed=_importer(kubeflow.baseline_model) if kubeflow.baseline_model else None,
    )
    _check_nodes(kubeflow.nodes, [node.id for node in pipeline.components])
    runner = tfx.orchestration.experimental.KubeflowV2DagRunner(
        config=tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(
            default_image=kubeflow.image, default_commands=_COMMAND, use_pipeline_spec_2_1=True
        )
    )
    spec = runner.run(pipeline, write_out=False)["pipelineSpec"]
    spec["defaultPipelineRoot"] = kubeflow.pipeline_root
    parameters = dict(PARAMETERS)
    if kubeflow.baseline_model:
        parameters[BASELINE] = (LAST_BLESSED, "artifact_uri")
    for name, (node, key) in parameters.items():
        _make_parameter(spec, name, node, key)
    if config.compress is not None:  # Fine-tuned at the rate that the run has trained with.
        _make_parameter(spec, _DENSE_RATE, _COMPRESSOR, _DENSE_RATE)
    _make_image_parameter(spec, kubeflow.image)
    if DIRECT_BASELINE in spec["components"]:  # Trained with the same settings, whatever a run changes.
        for name in SETTINGS:
            _make_parameter(spec, name, DIRECT_BASELINE, name)
    for node in spec["root"]["dag"]["tasks"]:
        _set_policy(spec, node, _policy(config, node))
    return spec


def write_pipeline(spec: JsonObject, path: str) -> None:
    """Writes a PipelineSpec as YAML, whole or not at all.

    Args:
        spec: See `compile_pipeline`.
        path: File to write, `.yaml` or `.yml`.

    Raises:
        InputError: If the file cannot be written.
    """
    target = output_file(path, ".yaml", ".yml", make_folder=True)
    with writing(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(spec, sort_keys=True)
        with written_aside(target) as file:
            file.write(text.encode())


def _importer(uri: str) -> base_node.BaseNode:
    """The model that the gate compares with; open-source Kubeflow has no resolver of TFX's kind."""
    artifact_type = tfx.types.standard_artifacts.Model
    importer = tfx.dsl.Importer(source_uri=uri, artifact_type=artifact_type, output_key="model")
    return importer.with_id(LAST_BLESSED)


def _check_nodes(named: dict[str, NodeConfig], known: list[str]) -> None:
    for name in named:
        if name not in known:
            raise InputError(
                f"'kubeflow.nodes' names {name!r}, which is no node.{nearest(name, known)} Nodes: {', '.join(known)}"
            )


def _make_parameter(spec: JsonObject, name: str, node: str, key: str) -> None:
    """Makes an execution property a parameter of the pipeline, with its constant value as the default.

    TFX's `RuntimeParameter` is not enough: its default does not reach the PipelineSpec.
    """
    definition = spec["components"][node]["inputDefinitions"]["parameters"][key]
    task_input = spec["root"]["dag"]["tasks"][node]["inputs"]["parameters"]
    default = task_input[key]["runtimeValue"]["constant"]
    _add_parameter(spec, name, definition["parameterType"], default)
    task_input[key] = {"componentInputParameter": name}
    executor = _executor(spec, node)
    if "importer" in executor:
        executor["importer"]["artifactUri"] = {"runtimeParameter": key}


def _make_image_parameter(spec: JsonObject, image: str) -> None:
    """Lets a run choose the image, like `PipelineTask.set_container_image` of the KFP SDK."""
    _add_parameter(spec, IMAGE, "STRING", image)
    for node, task in spec["root"]["dag"]["tasks"].items():
        executor = _executor(spec, node)
        if "container" in executor:
            executor["container"]["image"] = f"{{{{$.inputs.parameters['{IMAGE}']}}}}"
            task["inputs"].setdefault("parameters", {})[IMAGE] = {"componentInputParameter": IMAGE}
            inputs = spec["components"][node].setdefault("inputDefinitions", {})
            inputs.setdefault("parameters", {})[IMAGE] = {"parameterType": "STRING"}


def _add_parameter(spec: JsonObject, name: str, kind: str, default: JsonValue) -> None:
    inputs = spec["root"].setdefault("inputDefinitions", {}).setdefault("parameters", {})
    inputs[name] = {"parameterType": kind, "defaultValue": default}


def _policy(config: PipelineConfig, node: str) -> NodeConfig:
    """The policy of a node: its own keys, then the defaults, then the pipeline's caching."""
    own = config.kubeflow.nodes.get(node, NodeConfig())
    policy = config.kubeflow.defaults.replace(**own.model_dump(exclude_none=True))
    if policy.cache is None:
        # Kubeflow's cache sees the path of the log, not its content.
        return policy.replace(cache=config.enable_cache and node != _EXAMPLE_GEN)
    return policy


def _set_policy(spec: JsonObject, node: str, policy: NodeConfig) -> None:
    task, executor = spec["root"]["dag"]["tasks"][node], _executor(spec, node)
    # Set for every node, because some versions have it on by default.
    task["cachingOptions"] = {"enableCache": policy.cache}
    if policy.retries:
        task["retryPolicy"] = {
            "maxRetryCount": policy.retries,
            "backoffDuration": "30s",
            "backoffFactor": 2.0,
        }
    if "container" in executor and (resources := _resources(policy)):
        executor["container"]["resources"] = resources


def _resources(policy: NodeConfig) -> JsonObject:
    """A ResourceSpec; each figure is in it twice, as text for Kubeflow from 2.5 on and as a number for others."""
    resources: JsonObject = {}
    if policy.cpu is not None:
        for bound in ("Limit", "Request"):
            resources[f"cpu{bound}"] = policy.cpu
            resources[f"resourceCpu{bound}"] = f"{policy.cpu:g}"
    if policy.memory_gb is not None:
        for bound in ("Limit", "Request"):
            resources[f"memory{bound}"] = policy.memory_gb
            resources[f"resourceMemory{bound}"] = f"{policy.memory_gb:g}G"
    if policy.accelerator is not None:
        resources["accelerator"] = {
            "type": policy.accelerator,
            "count": str(policy.accelerator_count),
            "resourceType": policy.accelerator,
            "resourceCount": str(policy.accelerator_count),
        }
    return resources


def _executor(spec: JsonObject, node: str) -> JsonObject:
    return spec["deploymentSpec"]["executors"][spec["components"][node]["executorLabel"]]
