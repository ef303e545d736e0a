"""What a sweep runs: frozen dataclasses filled from YAML, and the cells that its grid spans."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mlet_tf._mapping import from_mapping, nearest
from mlet_tf.errors import InputError

FACTORISED = ("mlet", "mlet_frozen", "nested")
WIDENED = ("projected", "hash", "qr")
KINDS = ("direct", "mlet", "mlet_frozen", "nested", "projected", "hash", "qr")


@dataclass(frozen=True)
class GeneratedConfig:
    """A log drawn from `mlet_tf.datasets.Teacher`, whose best reachable AUC is known.

    Attributes:
        rows: Rows of the log.
        categoricals: Categorical columns.
        integers: Integer columns.
        rank: Rank of the teacher's interactions.
        vocabulary: Categories of the largest column.
        power: Exponent of the power law of the ids.
        strength: Standard deviation of the logit, about.
        noise: Share of rows with a click that no feature explains.
        ctr: Click-through rate.
        missing: Average share of missing values.
        seed: Draws the teacher and the rows.
    """

    rows: int = 500_000
    categoricals: int = 8
    integers: int = 2
    rank: int = 8
    vocabulary: int = 1000
    power: float = 1.0
    strength: float = 4.0
    noise: float = 0.0
    ctr: float = 0.25
    missing: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class SplitConfig:
    """Train, validation and test rows.

    Attributes:
        method: `random` draws all three at random; `sequential` trains on the first rows in file order and draws
            validation and test at random from the others, as is usual for Criteo-Kaggle and Avazu.
        validation_share: Share of all rows that selects learning rates.
        test_share: Share of all rows that is reported.
        seed: Seed of the draw.
    """

    method: Literal["random", "sequential"] = "random"
    validation_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the shares."""
        if min(self.validation_share, self.test_share) <= 0 or self.validation_share + self.test_share >= 1:
            raise InputError(
                "'validation_share' and 'test_share' should be positive and leave rows to train on. "
                f"Received: {self.validation_share} and {self.test_share}"
            )


@dataclass(frozen=True)
class DataConfig:
    """The rows.

    Attributes:
        log: A raw log: file, glob or folder. `$MLET_TF_SAMPLES/...` and the like are expanded.
        schema: `criteo`, `avazu` or the path of a YAML schema; of a `log`.
        generated: A generated log in the place of `log`.
        split: See `SplitConfig`.
        vocabulary: Keys of the pipeline's `vocabulary`, such as `min_count` and `rare_below`.
    """

    log: str | None = None
    schema: str = "criteo"
    generated: GeneratedConfig | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    vocabulary: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks that there is one source."""
        if (self.log is None) == (self.generated is None):
            raise InputError("give either 'log' or 'generated'")


@dataclass(frozen=True)
class TrainingConfig:
    """What all trials have in common.

    Attributes:
        bottom_units: Widths of the bottom MLP before its last layer of width `d`.
        top_units: Widths of the top MLP before the logit.
        batch_size: Rows a step.
        epochs: Passes over the training rows, each in an order of its own.
        steps_per_execution: Steps a call of the training function.
        dense_optimizer: Of the dense part; names as for tables.
        initial_accumulator: Starting value of Adagrad's accumulators. Keras's 0.1 is large against the squared
            gradients of a mean over a batch and makes Adagrad a plain gradient descent for rare ids.
    """

    bottom_units: tuple[int, ...] = (64, 32)
    top_units: tuple[int, ...] = (128, 64)
    batch_size: int = 1024
    epochs: int = 1
    steps_per_execution: int = 25
    dense_optimizer: Literal["sgd", "adagrad", "lazy_adam"] = "adagrad"
    initial_accumulator: float = 0.1


@dataclass(frozen=True)
class TuningConfig:
    """How learning rates are chosen for every cell: by Optuna, on the validation rows.

    Attributes:
        trials: Trials a cell; none takes `start` as it is.
        seed: Seed of initialisation and data order in these trials, none of the final ones.
        select: Metric that chooses.
        tables: Lowest and highest learning rate of the tables; equal ones fix it.
        projections: The same of the projections.
        dense: The same of the dense part.
        start: Learning rates of the first trial: of `tables`, `projections` and `dense`. A cell after another of
            its kind begins with what was best there too.
    """

    trials: int = 6
    seed: int = 1000
    select: Literal["auc", "logloss"] = "auc"
    tables: tuple[float, ...] = (0.005, 0.5)
    projections: tuple[float, ...] = (0.005, 0.2)
    dense: tuple[float, ...] = (0.05, 0.05)
    start: tuple[float, ...] = (0.05, 0.02, 0.05)

    def __post_init__(self) -> None:
        """Checks the bounds."""
        for key in ("tables", "projections", "dense"):
            bounds = getattr(self, key)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise InputError(f"{key!r} should be a lowest and a highest rate. Received: {list(bounds)}")
        if len(self.start) != 3:
            raise InputError(f"'start' should be three learning rates. Received: {list(self.start)}")


@dataclass(frozen=True)
class GridConfig:
    """All combinations of these are cells of the sweep.

    Attributes:
        kinds: `direct`; `mlet`, and `mlet_frozen` with a projection that stays as it was drawn; `nested`, which is
            `mlet` trained for every size at once; `projected`, tables of `d` columns behind a projection to
            `reference_dim` that is served too; `hash` and `qr`, references that keep `reference_dim` columns and
            share rows.
        output_dims: Embedding dims `d`. For `hash` and `qr` the `d` whose bytes they may take.
        hidden_dims: Hidden dims `k`; of factorised kinds.
        hidden_scales: Null gives every feature `k`; a number `a` gives a feature of `V` rows the power of two
            nearest to `a sqrt(V)`, at least `d` and at most `k`.
        table_l2: L2 penalties of the tables' touched rows.
        projection_l2: L2 penalties of the projections; of factorised kinds.
        initializations: Of factorised kinds.
        optimizers: Of the tables: `adagrad`, `row_wise_adagrad`, `sgd` or `lazy_adam`. Projections have Adagrad,
            with `sgd` SGD too.
        dtypes: Dtype policies of the model: `float32`, or `mixed_bfloat16` (tables stay float32).
        direct_threshold: Features with at most this many rows stay direct; null means `k`.
        reference_dim: Width that `projected`, `hash` and `qr` give to the rest of the model.
        rescaled_control: Whether each `mlet` cell is followed by `direct` with its table learning rate times
            `0.0625 k`.
        truncate_to: Ranks to which every final model is also truncated after training.
        fine_tune: Share of an epoch for which each `allocated` truncation is then trained on.
    """

    kinds: tuple[str, ...]
    output_dims: tuple[int, ...]
    hidden_dims: tuple[int, ...] = (64,)
    hidden_scales: tuple[float | None, ...] = (None,)
    table_l2: tuple[float, ...] = (0.0,)
    projection_l2: tuple[float, ...] = (0.0,)
    initializations: tuple[str, ...] = ("fixed_variance",)
    optimizers: tuple[str, ...] = ("adagrad",)
    dtypes: tuple[Literal["float32", "mixed_bfloat16"], ...] = ("float32",)
    direct_threshold: int | None = None
    reference_dim: int = 16
    rescaled_control: bool = False
    truncate_to: tuple[int, ...] = ()
    fine_tune: float = 0.0

    def __post_init__(self) -> None:
        """Checks the kinds."""
        for kind in self.kinds:
            if kind not in KINDS:
                raise InputError(
                    f"'kinds' should be out of {', '.join(KINDS)}. Received: {kind!r}.{nearest(kind, KINDS)}"
                )


@dataclass(frozen=True)
class SweepConfig:
    """A study.

    Attributes:
        name: Name of the study.
        output: Folder for the preprocessed rows and `trials.jsonl`.
        data: See `DataConfig`.
        training: See `TrainingConfig`.
        tuning: See `TuningConfig`.
        grid: See `GridConfig`.
        seeds: Seeds of the final trials of every cell.
        workers: Processes; null means one a core.
    """

    name: str
    output: str
    data: DataConfig
    grid: tuple[GridConfig, ...]
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    workers: int | None = None


@dataclass(frozen=True)
class Cell:
    """What is compared: one kind of embedding at one size.

    Attributes:
        kind: Out of `KINDS`.
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
        InputError: If the file cannot be read, a key is unknown or a value does not fit.
    """
    try:
        document = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"configuration {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"configuration {path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return from_mapping(SweepConfig, document)
    except InputError as error:
        raise InputError(f"configuration {path}: {error}") from None
