"""What a model must satisfy before it is pushed."""

from typing import Self

from pydantic import Field, model_validator

from mlet_tf.config.base import Group, GroupError
from mlet_tf.config.types import Distinct, Share, Text
from mlet_tf.names import Metric


class BoundConfig(Group):
    """Absolute bounds of a metric."""

    min: float | None = Field(None, ge=0, le=1_000, description="Smallest value; null leaves this side open.")
    max: float | None = Field(None, ge=0, le=1_000, description="Largest value; null leaves this side open.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise GroupError("min", f"should be at most 'max'. Received: {self.min} and {self.max}")
        return self


class GateConfig(Group):
    """What the collapsed model must satisfy before it is pushed."""

    bounds: dict[Metric, BoundConfig] = Field({}, description="Absolute bounds by metric, on all rows.")
    max_auc_drop: Share = Field(
        0.01, description="Largest drop of AUC against the last blessed model, on all rows."
    )
    max_collapse_loss: Share = Field(
        1e-6,
        description="How much worse than before the collapse AUC, logloss and normalised entropy may be, in every "
        "slice.",
    )
    max_quantization_loss: Share = Field(
        1e-4,
        description="The same where `serving.table_dtype` is not `float32`, on all rows; a slice with a hundredth of "
        "the clicks may be ten times as much worse.",
    )
    slices: Distinct[Text] = Field((), description="Raw columns whose values are slices.")
    frequency_slices: Distinct[Text] = Field(
        (),
        description="Categorical columns sliced by how often their id occurs in `train` (`frequent`, `rare`, `oov`, "
        "`missing`).",
    )
    min_slice_rows: int = Field(200, ge=1, le=10**12, description="Slices with fewer rows are not bounded.")
    slice_bounds: dict[Metric, BoundConfig] = Field(
        {}, description="Absolute bounds by metric that also hold in every slice."
    )

    @model_validator(mode="after")
    def _auc_is_at_most_1(self) -> Self:
        for key in ("bounds", "slice_bounds"):
            bound = getattr(self, key).get("auc", BoundConfig())
            for side in ("min", "max"):
                if (getattr(bound, side) or 0) > 1:
                    raise GroupError(
                        f"{key}.auc.{side}", f"should be from 0 to 1. Received: {getattr(bound, side)}"
                    )
        return self
