"""The cells of a sweep: what its grid compares, and the configuration of a run for each of them."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from mlet_tf.config import Group, ModelConfig, TrainConfig, from_mapping, load
from mlet_tf.config.base import Found
from mlet_tf.config.sweep import GridConfig, SweepConfig
from mlet_tf.embeddings.kinds import KINDS
from mlet_tf.errors import InputError

G = TypeVar("G", bound=Group)


@dataclass(frozen=True)
class Cell:
    """One kind of embedding at one size.

    Attributes:
        kind: See `embedding` of `GridConfig`.
        output_dim: `d`.
        hidden_dim: `k`; None for kinds without factors.
        initialization: Initialisation of the factors; None for kinds without factors.
        optimizer: Optimizer of the tables.
        dtype: Dtype policy of the model.
        direct_threshold: Features with at most this many rows stay direct; None means `k`.
        reference_dim: See `GridConfig`; None for other kinds.
        hidden_scale: See `GridConfig`.
        collapse_at: Share of the steps after which the model is collapsed; None for other kinds, or never.
        settings: Values of all other keys of a run that the grid varies.
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
    collapse_at: float | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values; empty `settings` are left out."""
        values = asdict(self)
        del values["settings"]
        return values | ({"settings": dict(self.settings)} if self.settings else {})


def cells(config: SweepConfig, grid: GridConfig) -> list[Cell]:
    """Returns the cells of a grid, those of each kind in order of increasing `d`.

    Raises:
        InputError: If a kind needs a hidden dim and has none.
    """
    lists = grid.run_keys()

    def varied(key: str) -> tuple[Any, ...]:
        return lists.pop(key, (config.value(key),))

    axes: dict[str, Iterable[Any]] = {
        "kind": grid.embedding,
        "optimizer": varied("train.tables.name"),
        # Trials are on CPUs, where `auto` is `off`.
        "dtype": ["mixed_bfloat16" if on == "on" else "float32" for on in varied("model.mixed_precision")],
        "hidden_dim": varied("model.hidden_dim"),
        "hidden_scale": grid.hidden_scale,
        "direct_threshold": varied("model.direct_threshold"),
        "initialization": varied("model.initialization"),
        "collapse_at": grid.collapse_at,
        "reference_dim": (grid.reference_dim,),
        "output_dim": sorted(varied("model.output_dim")),
    }
    others = [tuple(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    made = (
        of_kind(Cell(**dict(zip(axes, values, strict=True)), settings=settings))
        for settings in others
        for values in itertools.product(*axes.values())
    )
    return list(dict.fromkeys(made))  # One cell for all values of a key that its kind does not have.


def of_kind(cell: Cell) -> Cell:
    """Returns the cell with the defaults for fields that its kind does not use."""
    name = KINDS[cell.kind].without_hidden_dim if cell.hidden_dim is None else None
    name = name or cell.kind
    kind = KINDS[name]
    cell = replace(
        cell,
        kind=name,
        reference_dim=cell.reference_dim if kind.keeps_width else None,
        settings=tuple((key, value) for key, value in cell.settings if has_key(name, key)),
        collapse_at=cell.collapse_at if kind.collapses else None,
    )
    if not kind.factorised:
        return replace(
            cell,
            hidden_dim=None,
            hidden_scale=None,
            direct_threshold=None,
            initialization=None,
        )
    if cell.hidden_dim is None:
        raise InputError(f"'model.hidden_dim' should be a number for {name!r}. Received: null")
    return cell


def has_key(kind: str, key: str) -> bool:
    """Whether a key of the training says something about a kind."""
    return KINDS[kind].trains_projections or not key.startswith("train.projections.")


def model_config(config: SweepConfig, cell: Cell) -> ModelConfig:
    """Returns the model configuration of a cell."""
    keys = {
        "model.output_dim": cell.reference_dim or cell.output_dim,
        "model.hidden_dim": cell.hidden_dim,
        "model.direct_threshold": cell.direct_threshold,
        "model.initialization": cell.initialization or config.model.initialization,
        "model.mixed_precision": "on" if cell.dtype == "mixed_bfloat16" else "off",
    }
    return _changed(config.model, "model", dict(cell.settings) | keys)


def train_config(
    config: SweepConfig, cell: Cell, tuned: Mapping[str, float] = MappingProxyType({}), seed: int = 0
) -> TrainConfig:
    """Returns the training configuration of a cell.

    Args:
        config: The study.
        cell: The cell.
        tuned: Dotted keys of the training with the values that tuning gave them.
        seed: Seed of initialisation and data order.
    """
    keys = dict(cell.settings) | {"train.tables.name": cell.optimizer, "train.seed": seed} | dict(tuned)
    return _changed(config.train, "train", keys)


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Reads the configuration of a sweep.

    Args:
        path: A YAML file.
        overrides: `key=value` items, the key dotted and the value in YAML.

    Raises:
        InputError: With a line for each mistake: the file or the override, the key, the value and what is allowed.
    """
    return load(SweepConfig, path, overrides, _cells_no_run_takes)


def _changed(group: G, name: str, keys: Mapping[str, Any]) -> G:
    """The group of that name with other values of its keys out of dotted ones, checked anew."""
    plain = group.to_plain()
    for key, value in keys.items():
        top, *parents, last = key.split(".")
        if top == name:
            functools.reduce(dict.__getitem__, parents, plain)[last] = value
    return from_mapping(type(group), plain, name)


def _cells_no_run_takes(config: SweepConfig) -> Iterator[Found]:
    """The first mistake of each grid that only its combinations show."""
    for number, grid in enumerate(config.sweep.grid):
        try:
            for cell in cells(config, grid):
                model_config(config, cell)
                train_config(config, cell)
        except InputError as error:
            yield ("sweep", "grid", number), f"'sweep.grid[{number}]': {error}"
