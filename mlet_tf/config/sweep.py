"""A sweep: the configuration of a run, and a grid over its keys."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from mlet_tf.config.base import Group, GroupError, shown
from mlet_tf.config.data import DataConfig, VocabularyConfig, check_parts
from mlet_tf.config.model import ModelConfig
from mlet_tf.config.training import TrainConfig
from mlet_tf.config.types import Category, Dim, Distinct, Folder, Items, Name, Rate, Seed, Share, Text

Kind = Literal["direct", "mlet", "mlet_frozen", "nested", "projected", "hash", "qr"]
Part = Literal["train", "validation", "test"]
SearchKey = Literal[
    "train.tables.learning_rate",
    "train.projections.learning_rate",
    "train.dense.learning_rate",
    "train.tables.l2",
    "train.projections.l2",
    "train.dense.l2",
]
# Keys of a run that a sweep does not follow, and why.
RUN_ONLY = {
    "data.eval": "`sweep.split` divides the rows",
    "data.split": "`sweep.split` divides the rows",
    "data.chunk_bytes": "the log is read in one process",
    "train.checkpoint_steps": "trials have no checkpoints",
    "train.shuffle_rows": "each epoch has all rows in an order of its own",
    "train.shard_tables": "a trial is one process",
    "train.seed": "`sweep.seeds` and `sweep.tuning.seed` give it",
}


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


class SweepSplitConfig(Group):
    """Train, validation and test rows."""

    method: Literal["random", "sequential", "time", "column"] = Field(
        "random",
        description="`random` draws all three at random, 8:1:1 by default as in AutoInt; `sequential` trains on the "
        "first rows in file order and draws validation and test at random from the others, as is usual for "
        "Criteo-Kaggle and Avazu; `time` trains on the earliest rows, validates on later and tests on the latest ones, "
        "with all rows of one time in one split; `column` takes what a column of the log says.",
    )
    validation_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of all rows that selects learning rates; for `column` without a list for `validation`, of "
        "the rows of `train`.",
    )
    test_share: float = Field(
        0.1, gt=0, lt=1, description="Share of all rows that is reported; not for `column`."
    )
    column: Text | None = Field(
        None,
        description="For `column`: the column that names the part of a row. It may be one that the schema drops.",
    )
    parts: dict[Part, Distinct[Category]] = Field(
        {},
        description="For `column`: values of the column by split, all that it has. Without a list for `validation`, "
        "its rows are drawn at random from those of `train`.",
    )
    seed: Seed = Field(0, description="Seed of the draw.")

    @model_validator(mode="after")
    def _column_has_parts(self) -> Self:
        check_parts(self.method, self.column, self.parts, ("train", "test"))
        return self

    @model_validator(mode="after")
    def _rows_are_left(self) -> Self:
        if self.method != "column" and self.validation_share + self.test_share >= 1:
            raise GroupError(
                "test_share",
                "and 'validation_share' should leave rows to train on. "
                f"Received: {self.test_share} and {self.validation_share}",
            )
        return self


class RangeConfig(Group):
    """Where a learning rate or an L2 penalty is searched, on a logarithmic scale."""

    low: Rate = Field(description="Lowest value.")
    high: Rate = Field(description="Highest value.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high:
            raise GroupError("high", f"should be above 'low' ({self.low}). Received: {self.high}")
        return self


class TuningConfig(Group):
    """How learning rates and penalties are chosen for every cell: by Optuna, on the validation rows."""

    trials: int = Field(
        6, ge=0, le=10_000, description="Trials a cell, as many for each kind; 0 takes the run's own values."
    )
    output_dim: Dim | None = Field(
        None,
        description="The `d` at which cells that differ in `d` alone are tuned together; null tunes each of them, "
        "beginning with what was best in the one before.",
    )
    seed: Seed = Field(
        1000, description="Seed of initialisation and data order in these trials, none of the final ones."
    )
    metric: Literal["auc", "logloss"] = Field("auc", description="Metric that chooses.")
    search: dict[SearchKey, RangeConfig] = Field(
        {
            "train.tables.learning_rate": RangeConfig(low=0.005, high=1.0),
            "train.projections.learning_rate": RangeConfig(low=0.002, high=0.5),
            "train.dense.learning_rate": RangeConfig(low=0.0003, high=0.03),
        },
        description="Range of each learning rate and L2 penalty that is searched; the others stay at the run's own. A "
        "kind without trained projections leaves theirs out. The first trial of a kind has the run's own values, where "
        "they lie outside the nearer end of the range. By default tables' rates from 0.005 to 1, projections' from "
        "0.002 to 0.5 and dense ones from 0.0003 to 0.03.",
    )


def _keys_of(group: type[Group], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key of a group that a sweep follows, dotted, and the type of its value."""
    for name, field in group.model_fields.items():
        key, annotation = f"{prefix}{name}", field.rebuild_annotation()
        if isinstance(annotation, type) and issubclass(annotation, Group):
            yield from _keys_of(annotation, f"{key}.")
        elif key not in RUN_ONLY:
            yield key, annotation


_RunKeys: Any = create_model(  # type: ignore[call-overload]  # It cannot tell fields in a dict from options.
    "_RunKeys",
    __base__=Group,
    **{
        key: (
            Distinct[annotation],  # type: ignore[valid-type]
            Field((), description=f"Values of `{key}`; an empty list takes the run's own."),
        )
        for name, group in (("model", ModelConfig), ("train", TrainConfig))
        for key, annotation in _keys_of(group, f"{name}.")
    },
)


class GridConfig(_RunKeys):
    """All combinations of the values listed are cells of the sweep."""

    embedding: Distinct[Kind] = Field(
        ("mlet",),
        min_length=1,
        description="`mlet`, what a run trains: `direct` where `model.hidden_dim` is null; `direct`; `mlet_frozen` "
        "with a projection that stays as it was drawn; `nested`, which is `mlet` trained for every size at once; "
        "`projected`, tables of `d` columns behind a projection to `reference_dim` that is served too; `hash` and "
        "`qr`, references that keep `reference_dim` columns, share rows and take the bytes of `d`.",
    )
    hidden_scale: Distinct[Annotated[float, Field(gt=0, le=1_000_000)] | None] = Field(
        (None,),
        min_length=1,
        description="Null gives every feature `k`; a number `a` gives a feature of `V` rows the power of two nearest "
        "to `a sqrt(V)`, at least `d` and at most `k`.",
    )
    collapse_at: Distinct[Annotated[float, Field(gt=0, lt=1)] | None] = Field(
        (None,),
        min_length=1,
        description="Share of the steps after which `mlet` and `mlet_frozen` are collapsed and trained on as a direct "
        "model: its tables' optimizer starts anew, that of the dense part goes on. Null trains the factors to the end.",
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

    compress_to: Items[Annotated[float, Field(ge=1, le=1_000_000)]] = Field(
        (),
        description="How many times fewer bytes than float32 tables of its width every final model is also compressed "
        "to, on rows of `validation`; see `compress` of a run. Tables and plots name it by the columns that have as "
        "many bytes.",
    )

    def run_keys(self) -> dict[str, tuple[Any, ...]]:
        """The keys of a run that are varied, dotted, with their values."""
        return {key: getattr(self, key) for key in _RunKeys.model_fields if getattr(self, key)}


class StudyConfig(Group):
    """Settings of a sweep beyond those of a run."""

    generated: GeneratedConfig | None = Field(
        None, description="A generated log in the place of `data.train`."
    )
    split: SweepSplitConfig = SweepSplitConfig()
    seeds: Distinct[Seed] = Field(
        (0, 1, 2, 3, 4), min_length=1, description="Seeds of the final trials of every cell."
    )
    workers: int | None = Field(None, ge=1, le=10_000, description="Processes; null means one a core.")
    tuning: TuningConfig = TuningConfig()
    grid: Items[GridConfig] = Field(min_length=1, description="Grids, each with its cells.")


class SweepConfig(Group):
    """A sweep: groups of a run, and `sweep`."""

    name: Name = Field(description="Name of the study.")
    output: Folder = Field(description="Folder for the preprocessed rows and `trials.jsonl`.")
    data: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sweep: StudyConfig

    def value(self, key: str) -> Any:
        """The value of a dotted key."""
        found: Any = self
        for name in key.split("."):
            found = getattr(found, name)
        return found

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data.train is None) == (self.sweep.generated is None):
            given = "neither" if self.data.train is None else "both"
            raise GroupError(
                "data.train", f"or 'sweep.generated' should be given, one of them. Received: {given}"
            )
        return self

    @model_validator(mode="after")
    def _no_key_is_ignored(self) -> Self:
        for key, reason in RUN_ONLY.items():
            group, name = key.split(".")
            if self.value(key) != type(self.value(group)).model_fields[name].default:
                raise GroupError(
                    key, f"should be left out of a sweep: {reason}. Received: {shown(self.value(key))}"
                )
        return self

    @model_validator(mode="after")
    def _no_key_is_searched_and_varied(self) -> Self:
        for key in self.sweep.tuning.search if self.sweep.tuning.trials else ():
            for number, grid in enumerate(self.sweep.grid):
                if key in grid.run_keys():
                    raise GroupError(
                        f"sweep.grid[{number}].{key}",
                        f"should be left out, since 'sweep.tuning.search' has it. Received: {list(getattr(grid, key))}",
                    )
        return self
