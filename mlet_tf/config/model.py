"""The model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mlet_tf.config.base import Group, GroupError
from mlet_tf.config.types import Dim, InitializationName, Items, TableRows
from mlet_tf.names import INITIALIZATIONS


class ModelConfig(Group):
    """The DLRM."""

    output_dim: Dim = Field(8, description="Embedding dim `d`, what is served.")
    hidden_dim: Dim | None = Field(
        64, description="Hidden dim `k`, what is trained, at least `d`; null trains direct embeddings."
    )
    direct_threshold: TableRows | None = Field(
        None, description="Features with at most this many rows stay direct; null means `k`."
    )
    bottom_units: Items[Dim] = Field(
        (512, 256), max_length=32, description="Widths of the bottom MLP, before its last layer of width `d`."
    )
    top_units: Items[Dim] = Field(
        (512, 256), max_length=32, description="Widths of the top MLP, before the logit."
    )
    dot_skip: bool = Field(
        True,
        description="Whether a linear path leads from the dot products of the embeddings to the logit, beside the top "
        "MLP. Without it a log of ids alone may train nothing.",
    )
    initialization: InitializationName = Field(
        INITIALIZATIONS[0],
        description="Named initialisation of the factors, see `mlet_tf.layers.MLETEmbedding`.",
    )
    initial_scale: float = Field(
        1.0,
        gt=0,
        le=1_000_000,
        description="Factor on the initial embeddings: on the rows of direct tables and of `W1`.",
    )
    mixed_precision: Literal["auto", "on", "off"] = Field(
        "auto", description="`auto` computes in bfloat16 where there is a GPU; tables stay float32."
    )

    @model_validator(mode="after")
    def _hidden_is_wider(self) -> Self:
        if self.hidden_dim is not None and self.hidden_dim < self.output_dim:
            raise GroupError(
                "hidden_dim",
                f"(k={self.hidden_dim}) should be at least `output_dim` (d={self.output_dim}): a smaller k makes the "
                "collapsed table larger than what was trained",
            )
        return self
