"""How the features of a collection are laid out over few variables."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mlet_tf.layers._arguments import hidden_chain, positive_int

INT32_ROWS = 2**31 - 1
_COMBINERS = (None, "sum", "mean")

Chain = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class EmbeddingFeature:
    """One categorical feature of a collection.

    Attributes:
        name: Name, unique in the collection; key of dict inputs.
        input_dim: Vocabulary size `V`.
        hidden_dim: Hidden dimension, or a tuple of them for a deeper chain; None takes the collection's and 0
            makes the feature direct.
        table: Features with the same name here share a table; they need equal `input_dim` and `hidden_dim`.
        projection: Features with the same name here share projections; they need the same `hidden_dim`.
        combiner: `"sum"` or `"mean"` for multi-valued features, None for single values.

    Raises:
        ValueError: A value is invalid.
    """

    name: str
    input_dim: int
    hidden_dim: int | Chain | None = None
    table: str | None = None
    projection: str | None = None
    combiner: str | None = None

    def __post_init__(self) -> None:
        positive_int("input_dim", self.input_dim)
        if self.hidden_dim not in (None, 0):
            object.__setattr__(self, "hidden_dim", hidden_chain(self.hidden_dim))
        if self.combiner not in _COMBINERS:
            raise ValueError(f"`combiner` should be one of {_COMBINERS}. Received: {self.combiner!r}")


@dataclasses.dataclass
class Block:
    """Features that share a table and a projection; their ids share one range of distinct rows.

    Attributes:
        rows: Rows `V` of the table.
        slots: Positions of the features in the collection.
        offset: First row of the table in its variable.
        projection: Position of the projection in its stack, None for direct tables.
    """

    rows: int
    slots: list[int]
    offset: int
    projection: int | None


@dataclasses.dataclass
class TableGroup:
    """One variable of `[rows, width]` and the blocks that read it.

    Attributes:
        chain: Hidden dimensions of its features, empty for direct tables.
        table_rows: Rows of each table, top to bottom.
        blocks: What is read from it.
    """

    chain: Chain
    table_rows: list[int] = dataclasses.field(default_factory=list)
    blocks: list[Block] = dataclasses.field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of the variable."""
        return sum(self.table_rows)

    @property
    def slots(self) -> list[int]:
        """Positions of its features in the collection, block by block."""
        return [slot for block in self.blocks for slot in block.slots]

    @property
    def projections(self) -> list[int]:
        """Positions of the projections in their stack, block by block; empty for direct tables."""
        return [block.projection for block in self.blocks if block.projection is not None]

    @property
    def shares_rows(self) -> bool:
        """Whether two blocks read one table through different projections."""
        return len({block.offset for block in self.blocks}) < len(self.blocks)

    @property
    def starts(self) -> np.ndarray:
        """First id of each block's own range: its offset in the table, unless blocks share rows."""
        if not self.shares_rows:
            return np.asarray([block.offset for block in self.blocks])
        return np.cumsum([0] + [block.rows for block in self.blocks[:-1]])

    def per_slot(self, values: Sequence[int] | np.ndarray) -> np.ndarray:
        """Repeats one value a block for each of the block's features."""
        return np.repeat(values, [len(block.slots) for block in self.blocks])


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The layout of a collection.

    Attributes:
        features: The features.
        groups: The variables of tables, direct ones last.
        stacks: For each chain of hidden dimensions the number of projections in its stacks.
        order: Slots in the order of the groups, None where that is the order of the features.
        inverse: Inverse permutation of `order`.
    """

    features: tuple[EmbeddingFeature, ...]
    groups: tuple[TableGroup, ...]
    stacks: tuple[tuple[Chain, int], ...]
    order: np.ndarray | None
    inverse: np.ndarray | None

    def group_of(self, slot: int) -> tuple[int, Block]:
        """Returns the number of a feature's variable, and its block."""
        return next((n, b) for n, group in enumerate(self.groups) for b in group.blocks if slot in b.slots)

    def stack_slice(self, chain: Chain) -> slice:
        """Returns where the stacks of a chain are in the flat list of all of them."""
        chains = [other for other, _ in self.stacks]
        low = sum(len(other) for other in chains[: chains.index(chain)])
        return slice(low, low + len(chain))

    def shared_tables(self) -> dict[int, str]:
        """Names of tables shared together with their projection, by slot: only these stay shared when collapsed."""
        shared = [block for group in self.groups for block in group.blocks if len(block.slots) > 1]
        return {slot: f"shared_{i}" for i, block in enumerate(shared) for slot in block.slots}


def chain_of(feature: EmbeddingFeature, default: Chain | None, direct_threshold: int | None) -> Chain:
    """Returns the hidden dimensions of a feature, empty where it is direct."""
    chosen = default if feature.hidden_dim is None else feature.hidden_dim
    if not chosen:
        return ()
    chain = hidden_chain(chosen)
    threshold = chain[0] if direct_threshold is None else direct_threshold
    return () if feature.input_dim <= threshold else chain


def make_plan(
    features: tuple[EmbeddingFeature, ...],
    hidden_dims: Chain | None,
    direct_threshold: int | None,
    max_rows_per_table: int,
) -> Plan:
    """Assigns features to variables: one per chain of widths, direct ones last.

    Args:
        features: The features.
        hidden_dims: Hidden dimensions of features without their own, None for direct ones.
        direct_threshold: Largest vocabulary that stays direct, None for the first hidden dimension.
        max_rows_per_table: Most rows of one variable.

    Returns:
        The plan.

    Raises:
        ValueError: Features that share something differ, or have too many rows.
    """
    planner = _Planner(max_rows_per_table)
    chains = [chain_of(feature, hidden_dims, direct_threshold) for feature in features]
    for slot in sorted(range(len(features)), key=lambda slot: not chains[slot]):
        planner.add(slot, features[slot], chains[slot])
    for group in planner.groups:
        _require_int32(group, features)
    order = [slot for group in planner.groups for slot in group.slots]
    moved = order != list(range(len(order)))
    return Plan(
        features,
        tuple(planner.groups),
        tuple((chain, len(stack)) for chain, stack in planner.projections.items()),
        np.asarray(order, "int32") if moved else None,
        np.argsort(order).astype("int32") if moved else None,
    )


class _Planner:
    """A plan under construction."""

    def __init__(self, max_rows_per_table: int) -> None:
        self.groups: list[TableGroup] = []
        self.projections: dict[Chain, dict[str | tuple[str, str], int]] = {}
        self._max_rows = max_rows_per_table
        self._placed: dict[str | tuple[str, str], tuple[TableGroup, int]] = {}
        self._blocks: dict[tuple, Block] = {}
        self._chain_of_projection: dict[str | tuple[str, str], Chain] = {}

    def add(self, slot: int, feature: EmbeddingFeature, chain: Chain) -> None:
        # A tuple cannot be a name that the user gave.
        table = feature.table or ("feature", feature.name)
        projection = (feature.projection or ("feature", feature.name)) if chain else None
        if table not in self._placed:
            self._placed[table] = self._place(chain, feature)
        group, position = self._placed[table]
        same = group.chain == chain and group.table_rows[position] == feature.input_dim
        _require_same(feature, "table", same)
        if (table, projection) in self._blocks:
            self._blocks[table, projection].slots.append(slot)
            return
        index = None
        if projection is not None:
            same = self._chain_of_projection.setdefault(projection, chain) == chain
            _require_same(feature, "projection", same)
            stack = self.projections.setdefault(chain, {})
            index = stack.setdefault(projection, len(stack))
        block = Block(feature.input_dim, [slot], sum(group.table_rows[:position]), index)
        self._blocks[table, projection] = block
        group.blocks.append(block)

    def _place(self, chain: Chain, feature: EmbeddingFeature) -> tuple[TableGroup, int]:
        """Appends a table to the last variable of its width, or to a new one."""
        if feature.input_dim > INT32_ROWS:
            raise ValueError(
                f"`input_dim` of feature '{feature.name}' should be at most {INT32_ROWS}. "
                f"Received: {feature.input_dim}"
            )
        group = next((x for x in reversed(self.groups) if x.chain == chain), None)
        if group is None or group.rows + feature.input_dim > self._max_rows:
            group = TableGroup(chain)
            self.groups.append(group)
        group.table_rows.append(int(feature.input_dim))
        return group, len(group.table_rows) - 1


def _require_same(feature: EmbeddingFeature, what: str, same: bool) -> None:
    if not same:
        raise ValueError(
            f"Features that share a {what} should have the same `hidden_dim`"
            f"{' and `input_dim`' if what == 'table' else ''}. Received: {feature}, which differs from "
            f"another feature with {what}={getattr(feature, what)!r}"
        )


def _require_int32(group: TableGroup, features: Sequence[EmbeddingFeature]) -> None:
    rows = sum(block.rows for block in group.blocks)
    if rows > INT32_ROWS:  # The distinct rows of all blocks are numbered consecutively, in int32.
        raise ValueError(
            f"Features that share a table through different projections should have at most "
            f"{INT32_ROWS} rows together; a smaller `max_rows_per_table` parts them from other "
            f"tables. Received: {rows} rows, of {[features[slot].name for slot in group.slots]}"
        )
