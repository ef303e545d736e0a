"""The pipeline's configuration: frozen dataclasses filled from YAML.

`load_config` reads a file, applies `--set key=value` overrides and refuses unknown keys. The
resolved configuration is stored beside every run and every model.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mlet_tf._mapping import from_mapping, to_mapping
from mlet_tf.datasets import ClickLogSchema, load_schema
from mlet_tf.errors import InputError
from mlet_tf.metrics import METRICS


@dataclass(frozen=True)
class SplitConfig:
    """How rows are divided into `train` and `eval`.

    Attributes:
        method: `hash` of the row, `time` (train on earlier, evaluate on later rows) or `files`
            (`data.eval` names the evaluation files).
        eval_share: Share of rows for evaluation, for `hash` and for `time` without a `cut`.
        cut: For `time`: first value of the time column that belongs to `eval`.
        seed: Seed of the row hash.
    """

    method: Literal["hash", "time", "files"] = "hash"
    eval_share: float = 0.2
    cut: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """Where the click logs are and how they are read.

    Attributes:
        train: File, glob or folder with the raw log. Required by a run.
        eval: Evaluation files, for `split.method: files`.
        schema: `criteo`, `avazu` or the path of a YAML schema.
        split: See `SplitConfig`.
        max_reject_share: A run fails when a larger share of the rows is malformed.
        chunk_bytes: Size of the pieces of a file that workers read on their own.
    """

    train: str | None = None
    eval: str | None = None
    schema: str = "criteo"
    split: SplitConfig = field(default_factory=SplitConfig)
    max_reject_share: float = 0.001
    chunk_bytes: int = 16 << 20


@dataclass(frozen=True)
class ValidationConfig:
    """What the statistics of the data must satisfy.

    Attributes:
        fail_on_anomalies: Whether an anomaly ends the run; otherwise it is recorded only.
        max_missing_share: Largest share of missing values per column; columns not named may miss all
            but one value.
        max_drift: Largest L-infinity distance between the value shares of `train` and `eval`, per
            categorical column.
        sample_rate: Share of the rows the statistics are computed on, and so of those that are validated; of
            each split at least about 100,000 rows are looked at, or all that it has. The counts in `run.json`
            and those behind the vocabularies are of all rows. Of all rows the statistics would take nearly
            as long as everything else up to the training.
    """

    fail_on_anomalies: bool = True
    max_missing_share: dict[str, float] = field(default_factory=dict)
    max_drift: dict[str, float] = field(default_factory=dict)
    sample_rate: float = 0.1


@dataclass(frozen=True)
class VocabularyConfig:
    """Vocabularies, made from `train` alone.

    Attributes:
        min_count: A value that occurs less often in `train` is OOV.
        max_size: Keep at most this many values a feature, the most frequent ones.
        num_oov_buckets: Ids for values outside of the vocabulary, by hash.
        rare_below: Ids seen less often than this in `train` count as rare in the evaluation slices.
        max_values_in_memory: About how many values of a feature are added up at a time; more are taken from
            the counts on disk a range at a time. Changes memory, not the vocabularies.
    """

    min_count: int = 2
    max_size: int | None = None
    num_oov_buckets: int = 1
    rare_below: int = 10
    max_values_in_memory: int = 4_000_000


@dataclass(frozen=True)
class ModelConfig:
    """The DLRM.

    Attributes:
        output_dim: Embedding dim `d`, what is served.
        hidden_dim: Hidden dim `k`, what is trained; null trains direct embeddings.
        direct_threshold: Features with at most this many rows stay direct; null means `k`.
        bottom_units: Widths of the bottom MLP, before its last layer of width `d`.
        top_units: Widths of the top MLP, before the logit.
        initialization: Named initialisation of the factors, see `mlet_tf.layers.MLETEmbedding`.
        mixed_precision: `auto` computes in bfloat16 where there is a GPU; tables stay float32.
    """

    output_dim: int = 8
    hidden_dim: int | None = 64
    direct_threshold: int | None = None
    bottom_units: tuple[int, ...] = (512, 256)
    top_units: tuple[int, ...] = (512, 256)
    initialization: str = "fixed_variance"
    mixed_precision: Literal["auto", "on", "off"] = "auto"


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimizer.

    Attributes:
        name: `sgd`, `adagrad`, `row_wise_adagrad` or `lazy_adam`.
        learning_rate: Peak learning rate.
        initial_accumulator: Starting value of the accumulators of `adagrad` and `row_wise_adagrad`; null takes the
            optimizer's own, 0.1 and 0. Adagrad's 0.1 is large against the squared gradients of an embedding row: try
            1.0e-6 for tables, see `docs/results.md`.
    """

    name: Literal["sgd", "adagrad", "row_wise_adagrad", "lazy_adam"] = "adagrad"
    learning_rate: float = 0.02
    initial_accumulator: float | None = None

    def __post_init__(self) -> None:
        value = self.initial_accumulator
        if value is not None and (value < 0 or not self.name.endswith("adagrad")):
            raise InputError(
                "'initial_accumulator' should be at least 0, and is for adagrad and row_wise_adagrad only. "
                f"Received: {value} for {self.name}"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule, a factor on all learning rates.

    Attributes:
        warmup_steps: Steps of linear warm-up.
        decay: Shape of the decay after the warm-up, to zero at the last step.
    """

    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine"] = "none"


@dataclass(frozen=True)
class TrainConfig:
    """Training.

    Attributes:
        batch_size: Rows a step, over all replicas.
        epochs: Passes over `train`.
        max_steps: Stop after this many steps; null trains all epochs.
        tables: Optimizer of the embedding tables (`W1` and direct ones).
        projections: Optimizer of the projections (`W2`).
        dense: Optimizer of everything else.
        schedule: Learning-rate schedule.
        early_stopping_patience: Epochs without a better evaluation logloss before training stops;
            the best weights are kept. null trains on.
        checkpoint_steps: Steps between checkpoints.
        steps_per_execution: Steps a call of the training function.
        shuffle_rows: Size of the shuffle buffer in rows.
        shard_tables: Whether tables are divided by rows over the processes that `TF_CONFIG` names; otherwise each of
            them holds all.
        seed: Seed of initialisation and shuffling.
    """

    batch_size: int = 512
    epochs: int = 1
    max_steps: int | None = None
    tables: OptimizerConfig = field(default_factory=OptimizerConfig)
    projections: OptimizerConfig = field(default_factory=OptimizerConfig)
    dense: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    early_stopping_patience: int | None = None
    checkpoint_steps: int = 500
    steps_per_execution: int = 1
    shuffle_rows: int = 65536
    shard_tables: bool = False
    seed: int = 0


@dataclass(frozen=True)
class BoundConfig:
    """Absolute bounds of a metric; null leaves a side open."""

    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class GateConfig:
    """What the collapsed model must satisfy before it is pushed.

    Attributes:
        bounds: Absolute bounds by metric: `auc`, `logloss`, `calibration`, `normalized_entropy`.
        max_auc_drop: Largest drop of AUC against the last blessed model, overall.
        max_collapse_loss: How much worse than before the collapse AUC, logloss and normalised entropy may
            be, in every slice.
        max_quantization_loss: The same where `serving.table_dtype` is not `float32`, on all rows; a slice with a
            hundredth of the clicks may be ten times as much worse.
        slices: Raw columns whose values are slices.
        frequency_slices: Categorical columns sliced by how often their id occurs in `train`
            (`frequent`, `rare`, `oov`, `missing`).
        min_slice_rows: Slices with fewer rows are not bounded.
        slice_bounds: Absolute bounds that also hold in every slice.
    """

    bounds: dict[str, BoundConfig] = field(default_factory=dict)
    max_auc_drop: float = 0.01
    max_collapse_loss: float = 1e-6
    max_quantization_loss: float = 1e-4
    slices: tuple[str, ...] = ()
    frequency_slices: tuple[str, ...] = ()
    min_slice_rows: int = 200
    slice_bounds: dict[str, BoundConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("bounds", "slice_bounds"):
            for metric in getattr(self, key):
                if metric not in METRICS:
                    raise InputError(f"'{key}.{metric}' should be one of {', '.join(METRICS)}")


@dataclass(frozen=True)
class ServingConfig:
    """Where and how the model is pushed.

    Attributes:
        model_name: Name under which a server offers the model.
        push_to: Folder of the versions; null means `<output>/serving/<model_name>`.
        keep: Versions to keep.
        warmup_rows: Rows in the warm-up file.
        table_dtype: Dtype of the pushed tables. `float16` and `bfloat16` halve the collapsed ones; `int8`, with a
            scale and an offset a row, takes `d + 4` bytes a row instead of `4 d`.
        infra_validation: `model_server` starts a real TensorFlow Serving (`InfraValidator`),
            `saved_model` answers real rows in a fresh process, `auto` takes the first where a local
            docker answers.
    """

    model_name: str = "ctr"
    push_to: str | None = None
    keep: int = 3
    warmup_rows: int = 32
    table_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    infra_validation: Literal["auto", "model_server", "saved_model"] = "auto"


@dataclass(frozen=True)
class BeamConfig:
    """Apache Beam.

    Attributes:
        runner: `direct` runs in this process, or with `workers` in several; anything else is the name or
            the import path of a Beam runner.
        workers: Processes of the direct runner.
        options: Further Beam options, such as `--temp_location=gs://bucket/tmp`.
    """

    runner: str = "direct"
    workers: int = 1
    options: tuple[str, ...] = ()

    def args(self) -> list[str]:
        """Beam's command-line options."""
        if self.runner != "direct":
            return [f"--runner={self.runner}", *self.options]
        mode = "in_memory" if self.workers == 1 else "multi_processing"
        # By its full name: Beam's DirectRunner first tries to download another runner. An image name, which
        # this runner does not use, keeps TFX from packing itself up for every component.
        return [
            "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",
            f"--direct_running_mode={mode}",
            f"--direct_num_workers={self.workers}",
            "--sdk_container_image=unused",
            *self.options,
        ]


@dataclass(frozen=True)
class NodeConfig:
    """How the container of a node runs on Kubeflow; null leaves a thing to `kubeflow.defaults`, then to the cluster.

    Attributes:
        cpu: Cores, requested and at most.
        memory_gb: Memory in GB, requested and at most.
        accelerator: Resource name of an accelerator, such as `nvidia.com/gpu`.
        accelerator_count: Accelerators of that name.
        retries: How often a failed container is started again.
        cache: Whether the node is left out where its inputs are those of an earlier run; null follows
            `enable_cache`.
    """

    cpu: float | None = None
    memory_gb: float | None = None
    accelerator: str | None = None
    accelerator_count: int | None = None
    retries: int | None = None
    cache: bool | None = None

    def __post_init__(self) -> None:
        for key in ("cpu", "memory_gb", "accelerator_count"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise InputError(f"'{key}' should be positive. Received: {value}")
        if self.retries is not None and self.retries < 0:
            raise InputError(f"'retries' should not be negative. Received: {self.retries}")
        if (self.accelerator is None) != (self.accelerator_count is None):
            raise InputError("'accelerator' and 'accelerator_count' go together; give both or neither")


@dataclass(frozen=True)
class KubeflowConfig:
    """Kubeflow Pipelines; see `docs/kubeflow.md`.

    Attributes:
        image: Image of all containers, with this package installed.
        pipeline_root: Where artifacts go, a URI that containers and Kubeflow can write to.
        work: Where the trainer's container keeps checkpoints; null means `<pipeline_root>/work`. One that
            outlives the container lets a retry go on from them.
        baseline_model: Model artifact that the gate compares with, the last blessed one; null compares
            with none. Kubeflow cannot find it by itself.
        defaults: Every node's resources, retries and caching.
        nodes: The same by node name, where a node differs.
    """

    image: str | None = None
    pipeline_root: str | None = None
    work: str | None = None
    baseline_model: str | None = None
    defaults: NodeConfig = field(default_factory=NodeConfig)
    nodes: dict[str, NodeConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class PipelineConfig:
    """Everything a run needs.

    Attributes:
        name: Name of the pipeline in ML Metadata.
        output: Folder for all that the run writes; of a remote one, `runs/<name>` has what must be local.
        enable_cache: Whether components with unchanged inputs are left out.
    """

    name: str = "mlet-tf"
    output: str = "runs/mlet-tf"
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    beam: BeamConfig = field(default_factory=BeamConfig)
    kubeflow: KubeflowConfig = field(default_factory=KubeflowConfig)
    enable_cache: bool = True

    @property
    def schema(self) -> ClickLogSchema:
        """The schema of the click log."""
        return load_schema(self.data.schema)

    @property
    def push_to(self) -> str:
        """Folder of the pushed versions."""
        return self.serving.push_to or os.path.join(self.output, "serving", self.serving.model_name)  # noqa: PTH118


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Reads a configuration file.

    Args:
        path: A YAML file.
        overrides: `key=value` items, the key dotted and the value in YAML.

    Returns:
        The checked configuration.

    Raises:
        InputError: If the file cannot be read, a key is unknown or a value does not fit.
    """
    try:
        document = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"configuration {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"configuration {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise InputError(f"configuration {path}: expected a mapping of keys. Received: {document!r}")
    for override in overrides:
        _override(document, override)
    try:
        config = from_mapping(PipelineConfig, document)
    except InputError as error:
        raise InputError(f"configuration {path}: {error}") from None
    check_config(config)
    return config


def dump_config(config: PipelineConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to the same value."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def check_config(config: PipelineConfig) -> None:
    """Checks what a single key cannot show.

    Raises:
        InputError: Naming the keys that do not go together.
    """
    schema = config.schema
    model = config.model
    for key in ("output_dim", "hidden_dim"):
        value = getattr(model, key)
        if value is not None and value < 1:
            raise InputError(f"'model.{key}' should be positive. Received: {value}")
    if model.hidden_dim is not None and model.hidden_dim < model.output_dim:
        raise InputError(
            f"'model.hidden_dim' (k={model.hidden_dim}) should be at least 'model.output_dim' (d={model.output_dim}): "
            "a smaller k makes the collapsed table larger than what was trained"
        )
    if config.data.split.method == "time" and schema.time is None:
        raise InputError(f"'data.split.method' is 'time', but schema {schema.name!r} has no time column")
    if (config.data.split.method == "files") != (config.data.eval is not None):
        raise InputError("'data.eval' and 'data.split.method: files' go together; give both or neither")
    if not 0 < config.data.split.eval_share < 1:
        raise InputError(
            f"'data.split.eval_share' should be between 0 and 1. Received: {config.data.split.eval_share}"
        )
    _check_columns("gate.slices", config.gate.slices, (*schema.categoricals, *schema.integers))
    _check_columns("gate.frequency_slices", config.gate.frequency_slices, schema.sparse_features)
    _check_columns("validation.max_drift", config.validation.max_drift, schema.categoricals)
    _check_columns("validation.max_missing_share", config.validation.max_missing_share, schema.raw_features)
    positive = {
        "train.batch_size": config.train.batch_size,
        "train.epochs": config.train.epochs,
        "train.checkpoint_steps": config.train.checkpoint_steps,
        "train.steps_per_execution": config.train.steps_per_execution,
        "serving.keep": config.serving.keep,
        "beam.workers": config.beam.workers,
        "vocabulary.num_oov_buckets": config.vocabulary.num_oov_buckets,
        "vocabulary.min_count": config.vocabulary.min_count,
        "vocabulary.max_values_in_memory": config.vocabulary.max_values_in_memory,
    }
    for key, value in positive.items():
        if value < 1:
            raise InputError(f"{key!r} should be positive. Received: {value}")


def _check_columns(key: str, names: Any, known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(
                f"{key!r} names {name!r}, which the schema does not have. Columns: {', '.join(known)}"
            )


def _override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override!r}: expected key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"--set {override!r}: {parent!r} is not a group of keys")
    node[last] = value
