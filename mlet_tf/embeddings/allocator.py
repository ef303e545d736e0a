"""The plan with the least predicted loss within a number of bytes.

Each band of each table has many options: how many columns, how a row is kept, whether ids share rows. Each costs bytes
and an amount of loss, see `energy`. At a price of loss for a byte every table can choose for itself; the allocator
finds the price at which all choices together fill the budget. That is greedy by loss per byte, with the best move of
all open at each step, and no plan of as few bytes has less predicted loss. What one further step leaves of the budget
goes to the change of one band that gains most.

    tables = [
        measure_table(table, gradients.metric(), cut_bands(table.counts, tail), tail)
        for table, gradients, tail in zip(trained_tables, of_training_rows, tails)  # See `TableGradients`.
    ]
    tables = with_held_out_gains(tables, of_held_out_rows)
    plan = Allocator(tables).allocate(budget).plan  # To be written in the bases of `tables`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from mlet_tf.embeddings.column_codes import NARROW_BITS, WIDE_BITS
from mlet_tf.embeddings.energy import BandEnergy, TableEnergy
from mlet_tf.embeddings.plan import Band, Bytes, FeaturePlan, Plan, band_bytes, make_salts, row_bytes
from mlet_tf.errors import InputError

STORES = ("float32", "columns")
SHARING = ("bitmap", "hash")
WIDTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_KEPT = (1 / 2, 1 / 4, 1 / 8)  # Shares of a band's ids that have rows, where others have the mean.
_HASHED = (1 / 4, 1 / 16, 1 / 64)  # Rows of a hashed band for each id.
_LEAST_SHARING_IDS = 256
_PRICES = (1e-20, 1e6)  # Loss for a byte: less is nothing, more is never met.
_BISECTIONS = 200
# Squared error of a value, as a share of its square.
_ROUNDING = {"float32": 0.0, "float16": 2.0**-24, "bfloat16": 2.0**-18, "float8": 2.0**-10}
_INTEGER_STEPS = {"int8": 254, "int4": 15}


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The plans of all tables and what they are expected to cost.

    Attributes:
        features: The plan of each table.
        output_dims: Their widths d.
        loss: Predicted rise of the logloss over that of the trained tables.
    """

    features: tuple[FeaturePlan, ...]
    output_dims: tuple[int, ...]
    loss: float

    @property
    def bytes(self) -> Bytes:
        """Bytes of all tables."""
        return sum((f.bytes(d) for f, d in zip(self.features, self.output_dims, strict=True)), Bytes())

    @property
    def plan(self) -> Plan:
        """The plan of all tables, which have one width."""
        (width,) = set(self.output_dims)
        return Plan(width, self.features)


class Allocator:
    """Chooses columns, row store and sharing of each band.

    Args:
        tables: What the columns of each table are worth.
        stores: Row stores to choose from, but `pq`.
        sharing: Addresses to choose from besides `identity`.
        widths: Numbers of columns to choose from, below `d`; `d` itself always is one. A form of rows is a variable
            of the served model, so few of them make few lookups.
        seed: Of the hashes.
    """

    def __init__(
        self,
        tables: Sequence[TableEnergy],
        stores: Sequence[str] = STORES,
        sharing: Sequence[str] = SHARING,
        widths: Sequence[int] = WIDTHS,
        seed: int = 0,
    ) -> None:
        self._choosers = [
            _Chooser(table, number, widths, stores, sharing, seed) for number, table in enumerate(tables)
        ]
        self._smallest = _choose(self._choosers, _PRICES[1])

    @property
    def smallest_bytes(self) -> int:
        """Bytes of the smallest plan."""
        return _bytes(self._choosers, self._smallest)

    def allocate(self, budget: int) -> Allocation:
        """Returns the plan with the least predicted loss that the budget allows, the same at each call.

        A larger budget never has more predicted loss.

        Args:
            budget: Bytes of rows and addresses at most.

        Raises:
            InputError: Not even the smallest plan fits.
        """
        choosers, smaller = self._choosers, self._smallest
        low, high = _PRICES
        larger = _choose(choosers, low)
        if self.smallest_bytes > budget:
            raise InputError(
                f"Budget: expected at least {self.smallest_bytes} bytes, the smallest plan. Received: {budget}"
            )
        if _bytes(choosers, larger) <= budget:
            return _allocation(choosers, larger)
        for _ in range(_BISECTIONS):
            middle = float(np.sqrt(low * high))
            choice = _choose(choosers, middle)
            if _bytes(choosers, choice) > budget:
                low, larger = middle, choice
            else:
                high, smaller = middle, choice
        return _allocation(choosers, _filled(choosers, smaller, larger, budget))


def predict_loss(tables: Sequence[TableEnergy], plan: Plan) -> float:
    """Predicts the rise of the logloss by a plan.

    Args:
        tables: What the columns of each table are worth.
        plan: Its bands end where those of `tables` do, or each feature has a single one.
    """
    return sum(
        _feature_loss(table, feature, plan.output_dim)
        for table, feature in zip(tables, plan.features, strict=True)
    )


def _feature_loss(table: TableEnergy, feature: FeaturePlan, output_dim: int) -> float:
    bands = feature.bands
    if not feature.is_projected(output_dim) and len(bands) == 1:
        return sum(_noise(energy, bands[0]) for energy in table.bands)
    if tuple(band.stop for band in bands) != table.stops:
        raise ValueError(f"Feature {table.name}: `plan` should end its bands at {table.stops}")
    return sum(map(_band_loss, table.bands, bands))


def _band_loss(energy: BandEnergy, band: Band) -> float:
    """Loss by the columns that a band does not have, by shared rows and by rounding."""
    dropped = energy.columns[band.width :].sum()
    if not band.width:
        return float(dropped)
    noise = _noise(energy, band)
    if band.rows is None or band.rows >= energy.ids:
        return float(dropped + noise)
    shared = np.minimum(energy.lost_by_sharing(band.address, band.rows), energy.columns)[: band.width].sum()
    kept = energy.columns[: band.width].sum()
    # Rows that are not there have no rounding.
    return float(dropped + shared + noise * (1 - shared / max(kept, 1e-300)))


def _noise(energy: BandEnergy, band: Band) -> float:
    width = band.width
    if band.store == "columns":
        wide = band.wide or 0
        noise = energy.code_noise(WIDE_BITS)[:wide].sum() + energy.code_noise(NARROW_BITS)[wide:width].sum()
        return float(noise)
    if band.store in _INTEGER_STEPS:
        return float(energy.row_ranges[width] * width / 12 / _INTEGER_STEPS[band.store] ** 2)
    return float(energy.columns[:width].sum() * _ROUNDING[band.store])


@dataclasses.dataclass(frozen=True, eq=False)
class _Options:
    """Options of a band, by rising width.

    Attributes:
        bands: The options.
        widths: Columns of each, int `[n]`.
        bytes: Their bytes without projection and mean row, int `[n]`.
        losses: `[n]`.
        ends: Number of options up to each allowed width.
    """

    bands: tuple[Band, ...]
    widths: np.ndarray
    bytes: np.ndarray
    losses: np.ndarray
    ends: np.ndarray


_Choice = tuple[int, ...]  # An option of each band; for a table that stays as it is (-1,).


class _Chooser:
    """The options of a table."""

    def __init__(
        self,
        table: TableEnergy,
        number: int,
        widths: Sequence[int],
        stores: Sequence[str],
        sharing: Sequence[str],
        seed: int,
    ) -> None:
        self.width = len(table.basis.encode)
        allowed = sorted({*(w for w in widths if 0 <= w < self.width), self.width})
        self._table, self._allowed = table, np.array(allowed)
        make = functools.partial(_options, allowed=allowed, stores=stores, sharing=sharing)
        salts = make_salts(seed, number, 1)
        self._options = [
            make(energy, stop, salts=salts) for energy, stop in zip(table.bands, table.stops, strict=True)
        ]
        self._whole = FeaturePlan(table.name, table.rows, (Band(table.stops[-1], self.width),), table.tail)

    def choose(self, price: float) -> _Choice:
        """Returns what costs least at a price of loss for a byte."""
        costs = price * self._shared_bytes(self._allowed)
        best = []
        for options in self._options:
            cost = options.losses + price * options.bytes
            lowest = np.minimum.accumulate(cost)
            costs = costs + lowest[options.ends - 1]
            best.append(cost)
        widest = int(np.argmin(costs))
        if price * self._whole.bytes(self.width).embedding <= costs[widest]:
            return (-1,)
        pairs = zip(best, self._options, strict=True)
        return tuple(int(np.argmin(cost[: options.ends[widest]])) for cost, options in pairs)

    def cost(self, choice: _Choice) -> tuple[int, float]:
        """Returns bytes and loss of a choice."""
        if choice == (-1,):
            return self._whole.bytes(self.width).embedding, 0.0
        picked = list(zip(self._options, choice, strict=True))
        widest = max(options.widths[i] for options, i in picked)
        size = sum(int(options.bytes[i]) for options, i in picked) + int(self._shared_bytes(widest))
        return size, float(sum(options.losses[i] for options, i in picked))

    def improved(self, choice: _Choice, left: int) -> tuple[float, _Choice]:
        """Returns the loss that another option of one band can save with so many further bytes, and the choice."""
        size, loss = self.cost(choice)
        best = (_PRICES[0] * left, choice)
        if choice == (-1,):
            return best
        if self._whole.bytes(self.width).embedding <= size + left:
            best = (loss, (-1,))
        for number, (options, i) in enumerate(zip(self._options, choice, strict=True)):
            others = [o.widths[j] for o, j in zip(self._options, choice, strict=True) if o is not options]
            widest = np.maximum(options.widths, max(others, default=0))
            fixed = size - int(self._shared_bytes(max([*others, options.widths[i]]))) - int(options.bytes[i])
            fits = fixed + options.bytes + self._shared_bytes(widest) <= size + left
            saved = np.where(fits, options.losses[i] - options.losses, -np.inf)
            if saved.max() > best[0]:
                best = (
                    float(saved.max()),
                    (*choice[:number], int(saved.argmax()), *choice[number + 1 :]),
                )
        return best

    def plan(self, choice: _Choice) -> FeaturePlan:
        """Returns the plan of the table."""
        if choice == (-1,):
            return self._whole
        bands = tuple(options.bands[i] for options, i in zip(self._options, choice, strict=True))
        return dataclasses.replace(self._whole, bands=bands)

    def _shared_bytes(self, widest: np.ndarray) -> np.ndarray:
        """Bytes of the projection and of the mean rows."""
        return 4 * self.width * (widest + len(self._options))


def _options(
    energy: BandEnergy,
    stop: int,
    allowed: Sequence[int],
    stores: Sequence[str],
    sharing: Sequence[str],
    salts: tuple[tuple[int, int], ...],
) -> _Options:
    bands = []
    for width in allowed:
        forms = list(_forms(stop, width, allowed, stores))
        bands += forms
        if width and energy.ids >= _LEAST_SHARING_IDS:
            bands += [shared for form in forms for shared in _shared(form, energy.ids, sharing, salts)]
    sizes = [
        band_bytes(band, energy.ids).embedding
        + energy.tail * row_bytes(dataclasses.replace(band, address="identity", rows=None, salts=()))
        for band in bands
    ]
    widths = np.array([band.width for band in bands])
    return _Options(
        tuple(bands),
        widths,
        np.array(sizes),
        np.array([_band_loss(energy, band) for band in bands]),
        np.searchsorted(widths, allowed, side="right"),
    )


def _forms(stop: int, width: int, allowed: Sequence[int], stores: Sequence[str]) -> Iterator[Band]:
    """Bands of so many columns, in all row stores."""
    if not width:
        yield Band(stop, 0)
        return
    for store in stores:
        if store == "columns":
            for wide in sorted({0, width, *(w for w in allowed if w <= width and w.bit_count() == 1)}):
                yield Band(stop, width, store, wide=wide)
        else:
            yield Band(stop, width, store)


def _shared(
    form: Band, ids: int, sharing: Sequence[str], salts: tuple[tuple[int, int], ...]
) -> Iterator[Band]:
    if "bitmap" in sharing:
        for share in _KEPT:
            yield dataclasses.replace(form, address="bitmap", rows=round(ids * share))
    if "hash" in sharing:
        for share in _HASHED:
            yield dataclasses.replace(form, address="hash", rows=max(1, round(ids * share)), salts=salts)


def _choose(choosers: Sequence[_Chooser], price: float) -> list[_Choice]:
    return [chooser.choose(price) for chooser in choosers]


def _bytes(choosers: Sequence[_Chooser], choices: Sequence[_Choice]) -> int:
    return sum(chooser.cost(choice)[0] for chooser, choice in zip(choosers, choices, strict=True))


def _filled(
    choosers: Sequence[_Chooser], smaller: list[_Choice], larger: list[_Choice], budget: int
) -> list[_Choice]:
    """Spends what the smaller choice leaves of the budget.

    Both are best at nearly the same price, and so is what takes some tables of one and the others of the other. One
    further change makes a plan that is not the best of its size, but better than without it.
    """
    choices = list(smaller)
    left = budget - _bytes(choosers, choices)
    for number, choice in enumerate(larger):
        step = choosers[number].cost(choice)[0] - choosers[number].cost(choices[number])[0]
        if step > left:
            break
        choices[number], left = choice, left - step
    gains = [chooser.improved(choice, left) for chooser, choice in zip(choosers, choices, strict=True)]
    number = max(range(len(gains)), key=lambda i: gains[i][0])
    choices[number] = gains[number][1]
    return choices


def _allocation(choosers: Sequence[_Chooser], choices: Sequence[_Choice]) -> Allocation:
    pairs = list(zip(choosers, choices, strict=True))
    return Allocation(
        tuple(chooser.plan(choice) for chooser, choice in pairs),
        tuple(chooser.width for chooser in choosers),
        sum(chooser.cost(choice)[1] for chooser, choice in pairs),
    )


__all__ = ["SHARING", "STORES", "WIDTHS", "Allocation", "Allocator", "predict_loss"]
