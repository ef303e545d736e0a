"""How small a model is to be made."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from mlet_tf.config.base import Group, GroupError
from mlet_tf.config.types import Distinct, Share
from mlet_tf.names import COMPRESSION_METHODS, CompressionMethod


class BudgetConfig(Group):
    """What the tables of the compressed model may cost; exactly one key is given."""

    max_auc_drop: float | None = Field(
        None, ge=0, lt=1, description="AUC that may be lost against the collapsed model."
    )
    bytes: int | None = Field(None, ge=1, le=10**15, description="Bytes of rows and addresses.")
    ratio: float | None = Field(
        None, ge=1, le=10**6, description="How many times fewer bytes than float32 tables have."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            received = ", ".join(given) or "none of them"
            raise GroupError(
                "max_auc_drop", f"should be given alone, or 'bytes' or 'ratio' instead. Received: {received}"
            )
        return self


def _some(values: tuple[CompressionMethod, ...]) -> tuple[CompressionMethod, ...]:
    if not values:
        raise ValueError("empty")
    return values


class CompressConfig(Group):
    """Compression of the collapsed model to a budget."""

    budget: BudgetConfig = Field(description="What the tables may cost.")
    methods: Annotated[Distinct[CompressionMethod], AfterValidator(_some), Field(min_length=1)] = Field(
        COMPRESSION_METHODS,
        description="What may be saved: `columns` of the tables, `bits` of the values, `rows` that rare ids share.",
    )
    fine_tune: Share = Field(
        0.0,
        description="Share of an epoch for which the dense layers are then trained on; kept where the AUC is better.",
    )
    baseline: bool = Field(
        False,
        description="Whether a direct table of as many bytes is trained with the same settings, to compare with.",
    )
