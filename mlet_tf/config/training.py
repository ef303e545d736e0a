"""Training and its optimizers."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mlet_tf.config.base import Group, GroupError
from mlet_tf.config.types import Penalty, Rate, Seed
from mlet_tf.names import Optimizer


class OptimizerConfig(Group):
    """One optimizer."""

    name: Optimizer = Field(
        "adagrad", description="The update rule; `row_wise_adagrad` keeps one accumulator a row."
    )
    learning_rate: Rate = Field(0.02, description="Peak learning rate.")
    l2: Penalty = Field(
        0.0,
        description="L2 penalty, `l2 / 2` times the squared weights; of tables, on the rows of each batch.",
    )
    initial_accumulator: float | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Starting value of the accumulators of `adagrad` and `row_wise_adagrad`; null takes the "
        "optimizer's own, 0.1 and 0. Adagrad's 0.1 is large against the squared gradients of an embedding row: try "
        "1.0e-6 for tables, see `docs/results.md`.",
    )
    weight_decay: Penalty = Field(
        0.0,
        description="Decoupled weight decay (AdamW's): each step takes the share `learning_rate * weight_decay` of all "
        "weights away, of the rows of a table that are not in the batch too.",
    )

    @model_validator(mode="after")
    def _accumulator_is_adagrads(self) -> Self:
        if self.initial_accumulator is not None and not self.name.endswith("adagrad"):
            raise GroupError(
                "initial_accumulator",
                f"should be given for adagrad and row_wise_adagrad only. Received: {self.initial_accumulator} for "
                f"{self.name}",
            )
        return self


class TablesConfig(OptimizerConfig):
    """The optimizer of the tables."""

    rows_exponent: float = Field(
        0.0,
        ge=0,
        le=4,
        description="A table of `V` rows has the learning rate `learning_rate * (V / V_max) ** rows_exponent`, `V_max` "
        "the rows of the largest table; 0.5 makes it grow with the root of `V`.",
    )


class ScheduleConfig(Group):
    """Learning-rate schedule, a factor on all learning rates."""

    warmup_steps: int = Field(0, ge=0, le=10**12, description="Steps of linear warm-up.")
    decay: Literal["none", "linear", "cosine"] = Field(
        "none", description="Shape of the decay after the warm-up, to zero at the last step."
    )


class TrainConfig(Group):
    """Training."""

    batch_size: int = Field(512, ge=1, le=10**8, description="Rows a step, over all replicas.")
    epochs: int = Field(
        1, ge=1, le=100_000, description="Passes over `train`; the most there are with early stopping."
    )
    max_steps: int | None = Field(
        None, ge=1, le=10**12, description="Stop after this many steps; null trains all epochs."
    )
    tables: TablesConfig = Field(
        TablesConfig(), description="Optimizer of the embedding tables (`W1` and direct ones)."
    )
    projections: OptimizerConfig = Field(
        OptimizerConfig(), description="Optimizer of the projections (`W2`)."
    )
    dense: OptimizerConfig = Field(OptimizerConfig(), description="Optimizer of everything else.")
    schedule: ScheduleConfig = ScheduleConfig()
    early_stopping_patience: int | None = Field(
        None,
        ge=0,
        le=100_000,
        description="Epochs without a better `early_stopping_metric` before training stops and the weights of the best "
        "epoch are taken; null trains all epochs and takes the last weights.",
    )
    early_stopping_metric: Literal["logloss", "auc"] = Field(
        "logloss",
        description="Metric of the evaluation rows that decides which epoch is best. `logloss` sees a model begin to "
        "overfit before `auc` does, and keeps probabilities calibrated.",
    )
    checkpoint_steps: int = Field(500, ge=1, le=10**12, description="Steps between checkpoints.")
    steps_per_execution: int = Field(1, ge=1, le=10**6, description="Steps a call of the training function.")
    shuffle_rows: int = Field(65536, ge=1, le=10**10, description="Size of the shuffle buffer in rows.")
    shard_tables: bool = Field(
        False,
        description="Whether tables are divided by rows over the processes that `TF_CONFIG` names; otherwise each of "
        "them holds all.",
    )
    seed: Seed = Field(0, description="Seed of initialisation and shuffling.")
