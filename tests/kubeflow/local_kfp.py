"""Runs a compiled PipelineSpec on this machine, task by task, the way Kubeflow Pipelines does on a cluster.

It does what the API server, the driver and the launcher of open-source Kubeflow Pipelines do between
containers (`backend/src/apiserver/template`, `backend/src/v2/driver`, `backend/src/v2/component` and
`backend/src/v2/metadata`), and starts each task's own container command as a process. On purpose it
keeps what makes life hard there:

*   Artifacts travel through ML Metadata: their type is lost (`instanceSchema` comes back empty), numbers
    come back as doubles, and properties of the store's own are added.
*   A task waits for its `dependentTasks` only.
*   `lifecycle.preCacheCheck`, where TFX puts ExampleGen's driver, is not run; Vertex AI runs it.
*   What a container writes as its output is read strictly.

Left out: caching, retries, resources and images (all processes run in this environment). Artifacts lie in
folders instead of a bucket, whose copies by the launcher are left out with it.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

_PARAMETER = re.compile(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}")
_KINDS = {
    pb.ParameterType.STRING: str,
    pb.ParameterType.NUMBER_INTEGER: int | float,
    pb.ParameterType.NUMBER_DOUBLE: int | float,
}


class TaskFailedError(RuntimeError):
    """A container ended with an error; the message ends with the end of its log."""


@dataclasses.dataclass
class StoredArtifact:
    """What ML Metadata keeps of an artifact."""

    id: int
    uri: str
    properties: dict[str, Any]


@dataclasses.dataclass
class TaskRun:
    """What became of a task."""

    image: str | None
    outputs: dict[str, StoredArtifact]
    seconds: float
    log: Path | None


class LocalKubeflow:
    """One run of a pipeline.

    Args:
        spec: The PipelineSpec as plain values.
        root: Pipeline root, a folder.
        parameters: Parameters of the run.
        pre_cache_check: Whether `lifecycle.preCacheCheck` is run before a container, as on Vertex AI.

    Raises:
        ValueError: If the API server would refuse the run.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        root: Path,
        parameters: Mapping[str, Any] | None = None,
        pre_cache_check: bool = False,
    ) -> None:
        self.spec = json_format.ParseDict(spec, pb.PipelineSpec())
        self.deployment = json_format.ParseDict(
            json_format.MessageToDict(self.spec.deployment_spec), pb.PipelineDeploymentConfig()
        )
        self.root = root
        self.parameters = self._run_parameters(parameters or {})
        self.done: dict[str, TaskRun] = {}
        self._pre_cache_check = pre_cache_check
        self._ids = iter(range(1, 10_000))
        if self.spec.schema_version != "2.1.0":
            raise ValueError(f"schema version {self.spec.schema_version}, expected 2.1.0")

    def run(self, upto: str | None = None) -> dict[str, TaskRun]:
        """Runs all tasks, or one and those that it waits for; returns them by name."""
        wanted = self._upstream(upto) if upto else set(self.spec.root.dag.tasks)
        for name in self.order():
            if name in wanted and name not in self.done:
                self.done[name] = self.run_task(name)
        return self.done

    def order(self) -> Iterator[str]:
        """Tasks, each after those that it says it depends on."""
        tasks, ready = dict(self.spec.root.dag.tasks), set()
        while tasks:
            name = next((n for n, task in tasks.items() if ready.issuperset(task.dependent_tasks)), None)
            if name is None:
                raise ValueError(f"tasks that wait for each other: {', '.join(tasks)}")
            del tasks[name]
            ready.add(name)
            yield name

    def _upstream(self, name: str) -> set[str]:
        found = {name}
        for above in self.spec.root.dag.tasks[name].dependent_tasks:
            found |= self._upstream(above)
        return found

    def executor(self, name: str) -> pb.PipelineDeploymentConfig.ExecutorSpec:
        """How a task is executed."""
        component = self.spec.root.dag.tasks[name].component_ref.name
        return self.deployment.executors[self.spec.components[component].executor_label]

    def run_task(self, name: str) -> TaskRun:
        """Driver, container and launcher of one task."""
        if self.executor(name).WhichOneof("spec") == "importer":
            return self._import(name)
        container = self.executor(name).container
        executor_input = self.executor_input(name)
        folder = Path(executor_input.outputs.output_file).parent
        folder.mkdir(parents=True)
        for artifacts in executor_input.outputs.artifacts.values():
            Path(artifacts.artifacts[0].uri).mkdir()  # A bucket needs none.
        started, log = time.monotonic(), folder / "log.txt"
        if self._pre_cache_check and container.lifecycle.pre_cache_check.command:
            self._start(name, container.lifecycle.pre_cache_check, executor_input, log)
        self._start(name, container, executor_input, log)
        outputs = self._collect(executor_input)
        return TaskRun(self.image(name), outputs, time.monotonic() - started, log)

    def image(self, name: str) -> str:
        """The image of a task."""
        values = self.executor_input_values(name)
        return _PARAMETER.sub(lambda match: values[match[1]], self.executor(name).container.image)

    def executor_input(self, name: str) -> pb.ExecutorInput:
        """What the driver resolves for a task: values of parameters, artifacts of other tasks, places of its own."""
        task = self.spec.root.dag.tasks[name]
        component = self.spec.components[task.component_ref.name]
        result = pb.ExecutorInput()
        for key, value in self.executor_input_values(name).items():
            json_format.ParseDict(value, result.inputs.parameter_values[key])
        for key, source in task.inputs.artifacts.items():
            produced = source.task_output_artifact
            stored = self.done[produced.producer_task].outputs[produced.output_artifact_key]
            result.inputs.artifacts[key].artifacts.append(_from_store(stored))
        folder = self.root / self.spec.pipeline_info.name / name
        for key, declared in component.output_definitions.artifacts.items():
            result.outputs.artifacts[key].artifacts.add(
                name=key, uri=str(folder / key), type=declared.artifact_type, metadata=declared.metadata
            )
        result.outputs.output_file = str(folder / "output_metadata.json")
        return result

    def _run_parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Checks the parameters of a run as the API server does, and fills the defaults in."""
        declared = self.spec.root.input_definitions.parameters
        if unknown := set(given) - set(declared):
            raise ValueError(f"the pipeline has no parameter {', '.join(sorted(unknown))}")
        values = {}
        for key, parameter in declared.items():
            if key in given:
                values[key] = given[key]
            elif parameter.HasField("default_value"):
                values[key] = json_format.MessageToDict(parameter.default_value)
            else:
                raise ValueError(f"parameter {key} has neither a value nor a default")
            if not isinstance(values[key], _KINDS[parameter.parameter_type]):
                raise ValueError(f"parameter {key} is of another type: {values[key]!r}")
        return values

    def executor_input_values(self, name: str) -> dict[str, Any]:
        """Values of a task's input parameters."""
        task = self.spec.root.dag.tasks[name]
        declared = self.spec.components[task.component_ref.name].input_definitions.parameters
        values = {}
        for key, source in task.inputs.parameters.items():
            kind = source.WhichOneof("kind")
            if kind == "component_input_parameter":
                values[key] = self.parameters[source.component_input_parameter]
            else:
                assert kind == "runtime_value", f"{name}.{key}: {kind}"
                values[key] = json_format.MessageToDict(source.runtime_value.constant)
        assert set(declared) == set(values), f"{name}: {set(declared) ^ set(values)}"
        for key, parameter in declared.items():
            assert isinstance(values[key], _KINDS[parameter.parameter_type]), f"{name}.{key}: {values[key]!r}"
        return values

    def _start(self, name: str, spec: Any, executor_input: pb.ExecutorInput, log: Path) -> None:
        """Fills the placeholders in and runs the command in an empty folder, as in a container."""
        placeholders = _placeholders(executor_input)
        words = [_fill(word, placeholders) for word in (*spec.command, *spec.args)]
        words[0] = {"python": sys.executable}.get(words[0], words[0])
        work = log.parent / "container"
        work.mkdir(exist_ok=True)
        with log.open("a") as file:
            process = subprocess.run(
                words, cwd=work, stdout=file, stderr=subprocess.STDOUT, env=_environment(), check=False
            )
        if process.returncode:
            raise TaskFailedError(f"{name} ended with {process.returncode}: {log.read_text()[-3000:]}")

    def _collect(self, executor_input: pb.ExecutorInput) -> dict[str, StoredArtifact]:
        """What the launcher reads from the container's output and puts into ML Metadata."""
        output = json_format.Parse(Path(executor_input.outputs.output_file).read_text(), pb.ExecutorOutput())
        stored = {}
        for key, artifacts in executor_input.outputs.artifacts.items():
            artifact = artifacts.artifacts[0]
            for written in output.artifacts[key].artifacts if key in output.artifacts else []:
                artifact.uri = written.uri or artifact.uri
                artifact.metadata.MergeFrom(written.metadata)
            properties = {k: _to_store(v) for k, v in json_format.MessageToDict(artifact.metadata).items()}
            properties |= {"display_name": key, "store_session_info": '{"Provider":"gs","Params":{}}'}
            stored[key] = StoredArtifact(next(self._ids), artifact.uri, properties)
        return stored

    def _import(self, name: str) -> TaskRun:
        """An importer has no container: the launcher itself puts the artifact into ML Metadata."""
        importer = self.executor(name).importer
        uri = self.executor_input_values(name)[importer.artifact_uri.runtime_parameter]
        component = self.spec.components[self.spec.root.dag.tasks[name].component_ref.name]
        (key,) = component.output_definitions.artifacts
        return TaskRun(None, {key: StoredArtifact(next(self._ids), uri, {})}, 0.0, None)


def _from_store(stored: StoredArtifact) -> pb.RuntimeArtifact:
    artifact = pb.RuntimeArtifact(name=str(stored.id), uri=stored.uri)
    artifact.type.instance_schema = ""
    artifact.metadata.update(stored.properties)
    return artifact


def _to_store(value: Any) -> Any:
    if value is None:
        raise ValueError("ML Metadata takes no null")
    if isinstance(value, list):
        return {"list": value}
    return {"struct": value} if isinstance(value, dict) else value


def _placeholders(executor_input: pb.ExecutorInput) -> dict[str, str]:
    placeholders = {"{{$}}": json_format.MessageToJson(executor_input, indent=None)}
    for key, value in executor_input.inputs.parameter_values.items():
        plain = json_format.MessageToDict(value)
        text = plain if isinstance(plain, str) else json.dumps(plain)
        placeholders[f"{{{{$.inputs.parameters['{key}']}}}}"] = text
    for side, lists in (("inputs", executor_input.inputs), ("outputs", executor_input.outputs)):
        for key, artifacts in lists.artifacts.items():
            placeholders[f"{{{{$.{side}.artifacts['{key}'].uri}}}}"] = artifacts.artifacts[0].uri
    return placeholders


def _fill(text: str, placeholders: Mapping[str, str]) -> str:
    for placeholder, value in placeholders.items():
        text = text.replace(placeholder, value)
    return text


def _environment() -> dict[str, str]:
    """This environment, without what the image does not have."""
    return {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TF_USE_LEGACY_KERAS")
    }
