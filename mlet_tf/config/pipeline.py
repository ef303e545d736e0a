"""The configuration of a run."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from mlet_tf.config.base import Found, Group, GroupError, load
from mlet_tf.config.beam import BeamConfig
from mlet_tf.config.compress import CompressConfig
from mlet_tf.config.data import DataConfig, ValidationConfig, VocabularyConfig
from mlet_tf.config.gate import GateConfig
from mlet_tf.config.kubeflow import KubeflowConfig
from mlet_tf.config.model import ModelConfig
from mlet_tf.config.serving import ServingConfig
from mlet_tf.config.training import TrainConfig
from mlet_tf.config.types import Folder, Name
from mlet_tf.datasets import ClickLogSchema, load_schema
from mlet_tf.datasets.schema import reading_schema
from mlet_tf.documents import dump_document
from mlet_tf.errors import InputError, nearest


class PipelineConfig(Group):
    """Everything a run needs."""

    name: Name = Field("mlet-tf", description="Name of the pipeline in ML Metadata.")
    output: Folder = Field(
        "runs/mlet-tf",
        description="Folder for all that the run writes; of a remote one, `runs/<name>` has what must be local.",
    )
    data: DataConfig = DataConfig()
    validation: ValidationConfig = ValidationConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    compress: CompressConfig | None = Field(
        None, description="Compression of the tables to a budget; null serves the collapsed model as it is."
    )
    gate: GateConfig = GateConfig()
    serving: ServingConfig = ServingConfig()
    beam: BeamConfig = BeamConfig()
    kubeflow: KubeflowConfig = KubeflowConfig()
    enable_cache: bool = Field(True, description="Whether components with unchanged inputs are left out.")

    @model_validator(mode="after")
    def _one_way_to_narrow_tables(self) -> Self:
        if self.compress is not None and self.serving.table_dtype != "float32":
            text = (
                f"should be 'float32' with 'compress', which chooses. Received: {self.serving.table_dtype!r}"
            )
            raise GroupError("serving.table_dtype", text)
        return self

    @property
    def schema(self) -> ClickLogSchema:  # type: ignore[override]
        """The schema of the click log."""
        return load_schema(self.data.schema)

    @property
    def push_to(self) -> str:
        """Folder of the pushed versions."""
        return self.serving.push_to or os.path.join(self.output, "serving", self.serving.model_name)  # noqa: PTH118


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Reads the configuration of a run.

    Args:
        path: A YAML file.
        overrides: `key=value` items, the key dotted and the value in YAML.

    Returns:
        The checked configuration.

    Raises:
        InputError: With a line for each mistake: the file or the override, the key, the value and what is allowed.
    """
    return load(PipelineConfig, path, overrides, _against_schema)


def dump_config(config: PipelineConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to the same value."""
    return dump_document(config.to_plain())


def _against_schema(config: PipelineConfig) -> Iterator[Found]:
    """Mistakes that only the columns of the log show."""
    try:
        schema = config.schema
    except InputError as error:
        yield ("data", "schema"), f"'data.schema': {error}"
        return
    split = config.data.split
    if split.method == "time" and schema.time is None:
        path: tuple[str, ...] = ("data", "split", "method")
        yield path, f"'data.split.method' is 'time', but schema {schema.name!r} has no time column"
    elif split.column is not None:
        try:
            reading_schema(schema, split.column, "data.split.column")
        except InputError as error:
            yield ("data", "split", "column"), str(error)
    elif (
        split.cut is not None and schema.time and schema.time.format == "yymmddhh" and not _is_hour(split.cut)
    ):
        path = ("data", "split", "cut")
        yield path, f"'data.split.cut' should be an hour as YYMMDDHH, such as 14103000. Received: {split.cut}"
    columns = {
        ("gate", "slices"): (*schema.categoricals, *schema.integers),
        ("gate", "frequency_slices"): schema.sparse_features,
        ("validation", "max_drift"): schema.categoricals,
        ("validation", "max_missing_share"): schema.raw_features,
    }
    for path, known in columns.items():
        for name in getattr(getattr(config, path[0]), path[1]):
            if name not in known:
                yield (
                    path,
                    f"{'.'.join(path)!r} names {name!r}, which the schema does not have."
                    f"{nearest(name, known)} Columns: {', '.join(known)}",
                )


def _is_hour(value: int) -> bool:
    month, day, hour = value // 10_000 % 100, value // 100 % 100, value % 100
    return value < 10**8 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24
