"""Training and its optimizers."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from mlet_tf.config.base import Group, GroupError
from mlet_tf.config.types import Penalty, Rate, Seed
from mlet_tf.names import Optimizer

_SMALLEST_BATCH, _LARGEST_BATCH, _STEPS_AN_EPOCH = 256, 8192, 1000
# Squared gradient of one row's loss: that of the mean loss of a batch falls with the square of its size.
_ACCUMULATOR_OF_ONE_ROW = 0.25


class OptimizerConfig(Group):
    """One optimizer."""

    name: Optimizer = Field(
        "adagrad", description="The update rule; `row_wise_adagrad` keeps one accumulator a row."
    )
    learning_rate: Rate = Field(0.1, description="Peak learning rate.")
    l2: Penalty = Field(
        0.0,
        description="L2 penalty, `l2 / 2` times the squared weights; of tables, on the rows of each batch.",
    )
    initial_accumulator: float | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Starting value of the accumulators of `adagrad` and `row_wise_adagrad`; null takes "
        "`0.25 / batch_size ** 2`, which is small against squared gradients of rows that batches have often, and large "
        "against those of rare ones: these take careful steps. Keras's 0.1 is large against both.",
    )
    weight_decay: Penalty = Field(
        0.0,
        description="Decoupled weight decay (AdamW's): each step takes the share `learning_rate * weight_decay` of all "
        "weights away, of the rows of a table that are not in the batch too.",
    )

    def with_accumulator(self, start: float) -> Self:
        """The optimizer with this starting value where it has accumulators and none is given."""
        own = self.initial_accumulator is not None or not self.name.endswith("adagrad")
        return self if own else self.replace(initial_accumulator=start)

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

    batch_size: int | None = Field(
        None,
        ge=1,
        le=10**8,
        description="Rows a step, over all replicas; null takes the power of two nearest to a thousandth of the rows "
        "of `train`, from 256 to 8,192.",
    )
    epochs: int = Field(
        10, ge=1, le=100_000, description="Passes over `train`; the most there are with early stopping."
    )
    max_steps: int | None = Field(
        None, ge=1, le=10**12, description="Stop after this many steps; null trains all epochs."
    )
    tables: TablesConfig = Field(
        TablesConfig(), description="Optimizer of the embedding tables (`W1` and direct ones)."
    )
    projections: OptimizerConfig = Field(
        OptimizerConfig(learning_rate=0.04), description="Optimizer of the projections (`W2`)."
    )
    dense: OptimizerConfig = Field(
        OptimizerConfig(name="lazy_adam", learning_rate=0.002), description="Optimizer of everything else."
    )
    schedule: ScheduleConfig = ScheduleConfig()
    early_stopping_patience: int | None = Field(
        1,
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

    @property
    def rows_a_step(self) -> int:
        """`batch_size`, of a training that `for_rows` has made or that gives it."""
        if self.batch_size is None:
            raise ValueError("`batch_size` is null: call `for_rows` first.")
        return self.batch_size

    def for_rows(self, rows: int, workers: int = 1) -> Self:
        """The training with the values that depend on the rows in the place of nulls.

        Args:
            rows: Rows of `train`.
            workers: Processes that train together; the batch size that is chosen is a multiple of them.
        """
        size = self.batch_size
        if size is None:
            power = 2 ** round(math.log2(max(1, rows) / _STEPS_AN_EPOCH))
            size = min(max(power, _SMALLEST_BATCH), _LARGEST_BATCH, max(1, rows))
            size = max(size // workers, 1) * workers
        start = _ACCUMULATOR_OF_ONE_ROW / size**2
        return self.replace(
            batch_size=size,
            tables=self.tables.with_accumulator(start),
            projections=self.projections.with_accumulator(start),
            dense=self.dense.with_accumulator(start),
        )
