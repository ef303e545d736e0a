"""Gathers the results of a run from its artifacts into `run.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2
from mlet_tf.components.weight_collapser.executor import REPORT

from mlet_tf import strict_json
from mlet_tf.compression import COMPRESSION_FILE
from mlet_tf.errors import InputError
from mlet_tf.features.ingestion import read_ingest_report
from mlet_tf.gate import GATE_FILE, slice_text
from mlet_tf.metrics import METRICS
from mlet_tf.run_file import RUN_FILE, BaselineResults, Compression, Results, Run, read_run_file
from mlet_tf.storage import join
from mlet_tf.training.baseline import BASELINE_FILE
from mlet_tf.training.trainer import HISTORY
from mlet_tf.types import JsonObject

# Output artifacts by node and output key.
Outputs: TypeAlias = Mapping[str, Mapping[str, metadata_store_pb2.Artifact]]

_EVALUATED = ("uncollapsed", "collapsed", "compressed", "baseline")


def last_run_artifacts(connection: metadata_store_pb2.ConnectionConfig) -> Outputs:
    """Output artifacts of the newest pipeline run."""
    store = metadata_store.MetadataStore(connection)
    runs = store.get_contexts_by_type("pipeline_run")
    run = max(runs, key=lambda context: context.create_time_since_epoch)
    outputs: dict[str, dict[str, metadata_store_pb2.Artifact]] = {}
    for execution in store.get_executions_by_context(run.id):
        node = next(
            context.name.rsplit(".", 1)[-1]
            for context in store.get_contexts_by_execution(execution.id)
            if context.type == "node"
        )
        events = [
            event
            for event in store.get_events_by_execution_ids([execution.id])
            if event.type == metadata_store_pb2.Event.OUTPUT
        ]
        artifacts = {
            artifact.id: artifact for artifact in store.get_artifacts_by_id([e.artifact_id for e in events])
        }
        outputs[node] = {event.path.steps[0].key: artifacts[event.artifact_id] for event in events}
    return outputs


def gather(outputs: Outputs, seconds: Mapping[str, float]) -> Results:
    """Reads the artifacts of a run.

    Args:
        outputs: See `last_run_artifacts`.
        seconds: Wall time by component.
    """
    ingest = read_ingest_report(outputs["ClickLogExampleGen"]["examples"].uri)
    collapse = strict_json.read(join(outputs["WeightCollapser"]["report"].uri, REPORT))
    gate = strict_json.read(join(outputs["GatedEvaluator"]["evaluation"].uri, GATE_FILE))
    overall = {
        model: next(row for row in rows if not row["slice"]) for model, rows in gate["metrics"].items()
    }
    compression = _compression(outputs, overall)
    served_bytes = collapse["table_bytes"]["after"]
    if compression is not None:
        served_bytes = compression["bytes_after"]["rows"] + compression["bytes_after"]["addresses"]
    pushed = outputs["AtomicPusher"]["pushed_model"].custom_properties
    return {
        "rows": ingest["rows"],
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "metrics": {
            model: {metric: overall[model][metric] for metric in METRICS}
            for model in _EVALUATED
            if model in overall
        },
        "table_bytes": {**collapse["table_bytes"], "after": served_bytes},
        "max_abs_difference": collapse["max_abs_difference"]["effective_rows"],
        "max_abs_ctr_difference": collapse["max_abs_difference"]["ctr"],
        "quantization": {
            "table_dtype": collapse["table_dtype"],
            "max_abs_difference": collapse["max_abs_difference"]["quantized_rows"],
            "max_abs_ctr_difference": collapse["max_abs_difference"]["quantized_ctr"],
        },
        "compression": compression,
        "baseline": _baseline(outputs, overall),
        "blessed": gate["blessed"],
        "gate_failures": gate["failures"],
        "gate_checks": [check for check in gate["checks"] if check["slice"] == slice_text(())],
        "pushed": pushed["pushed_destination"].string_value if pushed["pushed"].int_value else None,
        "artifacts": _artifacts(outputs),
    }


def _compression(outputs: Outputs, overall: Mapping[str, JsonObject]) -> Compression | None:
    """What the compression was asked for and has done, judged by the gate's rows; None where it was not asked for."""
    if "ModelCompressor" not in outputs:
        return None
    report = strict_json.read(join(outputs["ModelCompressor"]["report"].uri, COMPRESSION_FILE))
    return {
        "budget": report["budget"],
        "bytes_before": report["bytes_before"],
        "bytes_after": report["bytes_after"],
        "auc_before": overall["uncollapsed"]["auc"],
        "auc_after": overall["compressed"]["auc"],
        "fine_tuned": report["fine_tuned"],
    }


def _baseline(outputs: Outputs, overall: Mapping[str, JsonObject]) -> BaselineResults | None:
    """The direct table of the compressed model's bytes; None where it was not asked for."""
    if "BaselineTrainer" not in outputs:
        return None
    size = strict_json.read(join(outputs["BaselineTrainer"]["model"].uri, BASELINE_FILE))
    return {**size, "auc": overall["baseline"]["auc"], "logloss": overall["baseline"]["logloss"]}


def _artifacts(outputs: Outputs) -> dict[str, str]:
    """Paths of what the nodes wrote."""
    paths = {
        "evaluation": outputs["GatedEvaluator"]["evaluation"].uri,
        "collapse_report": join(outputs["WeightCollapser"]["report"].uri, REPORT),
        "collapsed_model": outputs["WeightCollapser"]["collapsed_model"].uri,
        "uncollapsed_model": outputs["Trainer"]["model"].uri,
        "history": join(outputs["Trainer"]["model"].uri, HISTORY),
        "examples": outputs["ClickLogExampleGen"]["examples"].uri,
        "transform_graph": outputs["Transform"]["transform_graph"].uri,
    }
    if compressor := outputs.get("ModelCompressor"):
        paths["compressed_model"] = compressor["compressed_model"].uri
        paths["compression_report"] = join(compressor["report"].uri, COMPRESSION_FILE)
    if baseline := outputs.get("BaselineTrainer"):
        paths["baseline_model"] = baseline["model"].uri
    return paths


def write_run(output: Path, run: Run) -> Path:
    """Writes `run.json` whole or not at all."""
    path = output / RUN_FILE
    strict_json.write(path, run, indent=1)
    return path


def read_run(output: Path) -> Run | None:
    """The last `run.json` in an output folder; None if there is none, or one of another version."""
    try:
        return read_run_file(output)
    except InputError:
        return None
