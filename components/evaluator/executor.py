"""Predicts the evaluation rows with all models at once, computes metrics by slice and judges them."""

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_model_analysis as tfma
from absl import logging
from google.protobuf import json_format
from mlet_tf.components.beam import BeamExecutor
from mlet_tf.components.common import split_files
from mlet_tf.components.evaluator.gate import Check, Metrics, Slice, check_metrics
from tensorflow_model_analysis.proto import config_pb2, metrics_for_slice_pb2
from tfx import types
from tfx.types import artifact_utils

from mlet_tf import strict_json
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.export import SERVING_MODEL
from mlet_tf.features.examples import raw_feature_spec
from mlet_tf.features.names import FREQUENCY, FREQUENCY_BUCKETS
from mlet_tf.features.records import example_batches
from mlet_tf.features.transform_graph import TransformGraph
from mlet_tf.metrics import ctr_metrics
from mlet_tf.network import bypass_proxy_for_loopback
from mlet_tf.storage import join

RESULTS = "gate.json"
PREDICTIONS = "predictions"
CANDIDATE, UNCOLLAPSED, LAST_BLESSED = "collapsed", "uncollapsed", "last_blessed"

_BATCH = 4096


class Executor(BeamExecutor):
    """Executor of `GatedEvaluator`."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Evaluates and judges.

        Args:
            input_dict: `examples`, `transform_graph`, `model` (collapsed), `uncollapsed_model`, and
                `baseline_model` (last blessed; may be absent or empty).
            output_dict: `evaluation` gets TFMA's metrics file, `predictions/*.npz` (label, one array a
                model, one a slice column) and `gate.json`; `blessing` the verdict.
            exec_properties: `schema` and `gate`, both JSON, and `table_dtype`.
        """
        schema = ClickLogSchema.from_dict(json.loads(exec_properties["schema"]))
        gate = json.loads(exec_properties["gate"])
        models = {CANDIDATE: input_dict["model"], UNCOLLAPSED: input_dict["uncollapsed_model"]}
        if input_dict.get("baseline_model"):
            models[LAST_BLESSED] = input_dict["baseline_model"]
        paths = {name: join(artifacts[0].uri, SERVING_MODEL) for name, artifacts in models.items()}
        evaluation = artifact_utils.get_single_uri(output_dict["evaluation"])
        predict = PredictShard(
            paths, schema, gate, input_dict["transform_graph"][0].uri, join(evaluation, PREDICTIONS)
        )
        tf.io.gfile.makedirs(join(evaluation, PREDICTIONS))
        bypass_proxy_for_loopback()  # Where Beam's workers are processes on this machine.
        with self._make_beam_pipeline() as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(list(enumerate(split_files(input_dict["examples"], "eval"))))
                | "Spread" >> beam.Reshuffle()
                | "Predict" >> beam.ParDo(predict)
            )
        metrics = slice_metrics(load_predictions(evaluation), tuple(paths), gate["min_slice_rows"])
        checks = check_metrics(
            metrics[CANDIDATE],
            metrics[UNCOLLAPSED],
            metrics.get(LAST_BLESSED),
            gate,
            exec_properties["table_dtype"],
        )
        for check in checks:
            if not check.passed:
                logging.error("Gate: %s", check)
        write_results(evaluation, metrics, checks)
        self._bless(output_dict["blessing"][0], models, all(check.passed for check in checks))

    def _bless(
        self, blessing: types.Artifact, models: Mapping[str, list[types.Artifact]], passed: bool
    ) -> None:
        """Marks the blessing as TFX's own Evaluator does, so that Resolver and Pusher understand it."""
        candidate = models[CANDIDATE][0]
        blessing.set_string_custom_property("current_model", candidate.uri)
        blessing.set_int_custom_property("current_model_id", candidate.id)
        blessing.set_int_custom_property("blessed", int(passed))
        with tf.io.gfile.GFile(join(blessing.uri, "BLESSED" if passed else "NOT_BLESSED"), "w") as file:
            file.write("")


class PredictShard(beam.DoFn):
    """Writes labels, predictions and slice values of one shard of examples as NumPy arrays.

    Args:
        models: SavedModel folders by name.
        schema: Schema of the log.
        gate: The configuration's `gate`.
        transform_graph: URI of the transform graph.
        folder: Where the arrays go.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        schema: ClickLogSchema,
        gate: Mapping[str, Any],
        transform_graph: str,
        folder: str,
    ) -> None:
        """See the class."""
        self._paths = dict(models)
        self._schema = schema
        self._columns = tuple(gate["slices"])
        self._frequency_columns = tuple(gate["frequency_slices"])
        self._transform_graph = transform_graph
        self._folder = folder

    def setup(self) -> None:
        """Loads the models once a worker."""
        self._models = {name: tf.saved_model.load(path) for name, path in self._paths.items()}
        self._transform = TransformGraph(self._transform_graph)

    def process(self, element: tuple[int, str]) -> Iterator[int]:
        """Handles one `(index, file)`; gives the number of rows."""
        index, path = element
        parts = [self._predict(tf.constant(batch)) for batch in example_batches([path], _BATCH)]
        if not parts:
            return
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        with tf.io.gfile.GFile(join(self._folder, f"part-{index:05d}.npz"), "wb") as file:
            file.write(buffer.getvalue())
        yield len(arrays["label"])

    def _predict(self, serialized: tf.Tensor) -> dict[str, np.ndarray]:
        columns = tf.io.parse_example(serialized, raw_feature_spec(self._schema, with_label=True))
        arrays = {"label": columns[self._schema.label].values.numpy().astype(np.int8)}
        for name, model in self._models.items():
            arrays[f"ctr.{name}"] = model.signatures["serving_default"](examples=serialized)["ctr"].numpy()
        for name in self._columns:
            arrays[f"slice.{name}"] = _texts(columns[name], len(arrays["label"]))
        if self._frequency_columns:
            del columns[self._schema.label]
            codes = self._transform(columns)[FREQUENCY].numpy()
            for name, column in zip(self._frequency_columns, codes.T, strict=True):
                arrays[f"slice.{name} frequency"] = np.array(FREQUENCY_BUCKETS)[column]
        return arrays


def load_predictions(evaluation: str) -> dict[str, np.ndarray]:
    """All arrays that `GatedEvaluator` wrote below an evaluation's URI, in the order of the shards."""
    parts = []
    for path in sorted(tf.io.gfile.glob(join(evaluation, PREDICTIONS, "*.npz"))):
        with tf.io.gfile.GFile(path, "rb") as file, np.load(io.BytesIO(file.read())) as arrays:
            parts.append({name: arrays[name] for name in arrays.files})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def slice_metrics(
    arrays: Mapping[str, np.ndarray], models: tuple[str, ...], min_rows: int
) -> dict[str, Metrics]:
    """Metrics by model and slice; slices with fewer than `min_rows` rows are left out."""
    slices: dict[Slice, np.ndarray] = {(): np.ones(len(arrays["label"]), bool)}
    for name in arrays:
        if name.startswith("slice."):
            values, counts = np.unique(arrays[name], return_counts=True)
            for value in values[counts >= min_rows]:
                slices[(name.removeprefix("slice."), str(value))] = arrays[name] == value
    return {
        model: {
            key: _with_counts(arrays["label"][rows], arrays[f"ctr.{model}"][rows])
            for key, rows in slices.items()
        }
        for model in models
    }


def write_results(evaluation: str, metrics: Mapping[str, Metrics], checks: Sequence[Check]) -> None:
    """Writes `gate.json` and the files that `tfma.load_eval_result` reads."""
    results = {
        "blessed": all(check.passed for check in checks),
        "failures": [str(check) for check in checks if not check.passed],
        "checks": [dataclasses.asdict(check) for check in checks],
    }
    tables = {
        model: [{"slice": list(key), **values} for key, values in by_slice.items()]
        for model, by_slice in metrics.items()
    }
    with tf.io.gfile.GFile(join(evaluation, RESULTS), "w") as file:
        file.write(strict_json.dumps({**results, "metrics": tables}, indent=1))
    with tf.io.TFRecordWriter(join(evaluation, "metrics-00000-of-00001.tfrecord")) as writer:
        for model, by_slice in metrics.items():
            for key, values in by_slice.items():
                writer.write(_to_proto(model, key, values).SerializeToString())
    run = config_pb2.EvalRun(version=tfma.version.VERSION, model_locations=dict.fromkeys(metrics, ""))
    run.eval_config.model_specs.extend(config_pb2.ModelSpec(name=name) for name in metrics)
    with tf.io.gfile.GFile(join(evaluation, "eval_config.json"), "w") as file:
        file.write(json_format.MessageToJson(run))


def _to_proto(model: str, key: Slice, values: Mapping[str, float]) -> metrics_for_slice_pb2.MetricsForSlice:
    proto = metrics_for_slice_pb2.MetricsForSlice()
    if key:
        proto.slice_key.single_slice_keys.add(column=key[0], bytes_value=key[1].encode())
    for name, value in values.items():
        entry = proto.metric_keys_and_values.add()
        entry.key.name, entry.key.model_name = name, model
        entry.value.double_value.value = value
    return proto


def _with_counts(label: np.ndarray, ctr: np.ndarray) -> dict[str, float]:
    return {"rows": len(label), "clicks": int(label.sum()), **ctr_metrics(label, ctr)}


def _texts(column: tf.SparseTensor, rows: int) -> np.ndarray:
    texts = np.full(rows, "missing", dtype=object)
    values = column.values.numpy()
    texts[column.indices.numpy()[:, 0]] = [
        v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values
    ]
    return texts.astype(str)
