"""What a sweep runs: groups of keys on the same base as a run's, and the cells that its grid spans."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mlet_tf.config import Group, GroupError, VocabularyConfig, load
from mlet_tf.config.types import (
    Dim,
    Folder,
    InitializationName,
    Items,
    Name,
    Penalty,
    Rate,
    Seed,
    Share,
    TableRows,
    Text,
)
from mlet_tf.names import INITIALIZATIONS, Optimizer

Kind = Literal["direct", "mlet", "mlet_frozen", "nested", "projected", "hash", "qr"]
FACTORISED = ("mlet", "mlet_frozen", "nested")
WIDENED = ("projected", "hash", "qr")


class GeneratedConfig(Group):
    """A log drawn from `mlet_tf.datasets.Teacher`, whose best reachable AUC is known."""

    rows: int = Field(500_000, ge=1, le=10**11, description="Rows of the log.")
    categoricals: int = Field(8, ge=1, le=10_000, description="Categorical columns.")
    integers: int = Field(2, ge=0, le=10_000, description="Integer columns.")
    rank: int = Field(8, ge=1, le=65_536, description="Rank of the teacher's interactions.")
    vocabulary: int = Field(1000, ge=1, le=2**31 - 1, description="Categories of the largest column.")
    power: float = Field(1.0, ge=0, le=100, description="Exponent of the power law of the ids.")
    strength: float = Field(4.0, ge=0, le=1000, description="Standard deviation of the logit, about.")
    noise: Share = Field(0.0, description="Share of rows with a click that no feature explains.")
    ctr: float = Field(0.25, gt=0, lt=1, description="Click-through rate.")
    missing: float = Field(0.02, ge=0, le=0.5, description="Average share of missing values.")
    seed: Seed = Field(0, description="Draws the teacher and the rows.")


class SplitConfig(Group):
    """Train, validation and test rows."""

    method: Literal["random", "sequential"] = Field(
        "random",
        description="`random` draws all three at random; `sequential` trains on the first rows in file order and draws "
        "validation and test at random from the others, as is usual for Criteo-Kaggle and Avazu.",
    )
    validation_share: float = Field(
        0.1, gt=0, lt=1, description="Share of all rows that selects learning rates."
    )
    test_share: float = Field(0.1, gt=0, lt=1, description="Share of all rows that is reported.")
    seed: Seed = Field(0, description="Seed of the draw.")

    @model_validator(mode="after")
    def _rows_are_left(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise GroupError(
                "test_share",
                "and 'validation_share' should leave rows to train on. "
                f"Received: {self.test_share} and {self.validation_share}",
            )
        return self


class DataConfig(Group):
    """The rows."""

    log: Text | None = Field(
        None,
        description="A raw log: file, glob or folder. `$MLET_TF_SAMPLES/...` and the like are expanded.",
    )
    schema: Text = Field(  # type: ignore[assignment]
        "criteo", description="`criteo`, `avazu` or the path of a YAML schema; of a `log`."
    )
    generated: GeneratedConfig | None = Field(None, description="A generated log in the place of `log`.")
    split: SplitConfig = SplitConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.log is None) == (self.generated is None):
            given = "neither" if self.log is None else "both"
            raise GroupError("log", f"or 'generated' should be given, one of them. Received: {given}")
        return self


class TrainingConfig(Group):
    """What all trials have in common."""

    bottom_units: Items[Dim] = Field(
        (64, 32), max_length=32, description="Widths of the bottom MLP before its last layer of width `d`."
    )
    top_units: Items[Dim] = Field(
        (128, 64), max_length=32, description="Widths of the top MLP before the logit."
    )
    batch_size: int = Field(1024, ge=1, le=10**8, description="Rows a step.")
    epochs: int = Field(
        1, ge=1, le=100_000, description="Passes over the training rows, each in an order of its own."
    )
    steps_per_execution: int = Field(25, ge=1, le=10**6, description="Steps a call of the training function.")
    dense_optimizer: Literal["sgd", "adagrad", "lazy_adam"] = Field(
        "adagrad", description="Optimizer of the dense part."
    )
    initial_accumulator: float = Field(
        0.1,
        ge=0,
        le=1_000_000,
        description="Starting value of Adagrad's accumulators. Keras's 0.1 is large against the squared gradients of "
        "a mean over a batch and makes Adagrad a plain gradient descent for rare ids.",
    )


_Bounds = Annotated[Items[Rate], Field(min_length=2, max_length=2)]


class TuningConfig(Group):
    """How learning rates are chosen for every cell: by Optuna, on the validation rows."""

    trials: int = Field(6, ge=0, le=10_000, description="Trials a cell; none takes `start` as it is.")
    seed: Seed = Field(
        1000, description="Seed of initialisation and data order in these trials, none of the final ones."
    )
    select: Literal["auc", "logloss"] = Field("auc", description="Metric that chooses.")
    tables: _Bounds = Field(
        (0.005, 0.5), description="Lowest and highest learning rate of the tables; equal ones fix it."
    )
    projections: _Bounds = Field((0.005, 0.2), description="The same for the projections.")
    dense: _Bounds = Field((0.05, 0.05), description="The same for the dense part.")
    start: Annotated[Items[Rate], Field(min_length=3, max_length=3)] = Field(
        (0.05, 0.02, 0.05),
        description="Learning rates of the first trial: of `tables`, `projections` and `dense`. A cell after another "
        "of its kind begins with what was best there too.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for key in ("tables", "projections", "dense"):
            low, high = getattr(self, key)
            if low > high:
                raise GroupError(key, f"should be a lowest and a highest rate. Received: {[low, high]}")
        return self


class GridConfig(Group):
    """All combinations of these are cells of the sweep."""

    kinds: Items[Kind] = Field(
        min_length=1,
        description="`direct`; `mlet`, and `mlet_frozen` with a projection that stays as it was drawn; `nested`, which "
        "is `mlet` trained for every size at once; `projected`, tables of `d` columns behind a projection to "
        "`reference_dim` that is served too; `hash` and `qr`, references that keep `reference_dim` columns and share "
        "rows.",
    )
    output_dims: Items[Dim] = Field(
        min_length=1, description="Embedding dims `d`. For `hash` and `qr` the `d` whose bytes they may take."
    )
    hidden_dims: Items[Dim] = Field((64,), min_length=1, description="Hidden dims `k`; of factorised kinds.")
    hidden_scales: Items[Annotated[float, Field(gt=0, le=1_000_000)] | None] = Field(
        (None,),
        min_length=1,
        description="Null gives every feature `k`; a number `a` gives a feature of `V` rows the power of two nearest "
        "to `a sqrt(V)`, at least `d` and at most `k`.",
    )
    table_l2: Items[Penalty] = Field(
        (0.0,), min_length=1, description="L2 penalties of the tables' touched rows."
    )
    projection_l2: Items[Penalty] = Field(
        (0.0,), min_length=1, description="L2 penalties of the projections; of factorised kinds."
    )
    initializations: Items[InitializationName] = Field(
        (INITIALIZATIONS[0],),
        min_length=1,
        description="Of factorised kinds.",
    )
    optimizers: Items[Optimizer] = Field(
        ("adagrad",),
        min_length=1,
        description="Of the tables. Projections have Adagrad, with `sgd` SGD too.",
    )
    dtypes: Items[Literal["float32", "mixed_bfloat16"]] = Field(
        ("float32",), min_length=1, description="Dtype policies of the model; tables stay float32 with both."
    )
    direct_threshold: TableRows | None = Field(
        None, description="Features with at most this many rows stay direct; null means `k`."
    )
    reference_dim: Dim = Field(
        16, description="Width that `projected`, `hash` and `qr` give to the rest of the model."
    )
    rescaled_control: bool = Field(
        False,
        description="Whether each `mlet` cell is followed by `direct` with its table learning rate times `0.0625 k`.",
    )
    truncate_to: Items[Dim] = Field(
        (), description="Ranks to which every final model is also truncated after training."
    )
    fine_tune: Share = Field(
        0.0, description="Share of an epoch for which each `allocated` truncation is then trained on."
    )


class SweepConfig(Group):
    """A study."""

    name: Name = Field(description="Name of the study.")
    output: Folder = Field(description="Folder for the preprocessed rows and `trials.jsonl`.")
    data: DataConfig
    grid: Items[GridConfig] = Field(min_length=1, description="Grids, each with its cells.")
    training: TrainingConfig = TrainingConfig()
    tuning: TuningConfig = TuningConfig()
    seeds: Items[Seed] = Field(
        (0, 1, 2, 3, 4), min_length=1, description="Seeds of the final trials of every cell."
    )
    workers: int | None = Field(None, ge=1, le=10_000, description="Processes; null means one a core.")


@dataclass(frozen=True)
class Cell:
    """What is compared: one kind of embedding at one size.

    Attributes:
        kind: See `GridConfig`.
        output_dim: `d`.
        hidden_dim: `k`; None for kinds without factors.
        initialization: Of the factors; None likewise.
        optimizer: Of the tables.
        dtype: Dtype policy of the model.
        direct_threshold: See `GridConfig`.
        reference_dim: See `GridConfig`; None for other kinds.
        hidden_scale: See `hidden_scales` of `GridConfig`.
        table_l2: L2 penalty of the tables.
        projection_l2: L2 penalty of the projections.
    """

    kind: str
    output_dim: int
    hidden_dim: int | None = None
    initialization: str | None = None
    optimizer: str = "adagrad"
    dtype: str = "float32"
    direct_threshold: int | None = None
    reference_dim: int | None = None
    hidden_scale: float | None = None
    table_l2: float = 0.0
    projection_l2: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def cells(grid: GridConfig) -> Iterator[Cell]:
    """The cells of a grid, those of one kind by growing `d`."""
    for kind, optimizer, dtype in itertools.product(grid.kinds, grid.optimizers, grid.dtypes):
        factorised = kind in FACTORISED
        hidden_dims = grid.hidden_dims if factorised else (None,)
        hidden_scales = grid.hidden_scales if factorised else (None,)
        initializations = grid.initializations if factorised else (None,)
        projection_l2 = grid.projection_l2 if factorised else (0.0,)
        for hidden_dim, scale, initialization, of_tables, of_projections, d in itertools.product(
            hidden_dims,
            hidden_scales,
            initializations,
            grid.table_l2,
            projection_l2,
            sorted(grid.output_dims),
        ):
            yield Cell(
                kind,
                d,
                hidden_dim,
                initialization,
                optimizer,
                dtype,
                grid.direct_threshold if factorised else None,
                grid.reference_dim if kind in WIDENED else None,
                scale,
                of_tables,
                of_projections,
            )


def load_sweep(path: str | Path) -> SweepConfig:
    """Reads the configuration of a sweep.

    Raises:
        InputError: With a line for each mistake: the file, the key, the value and what is allowed.
    """
    return load(SweepConfig, path)
