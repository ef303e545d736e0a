"""What embeddings are served as, in numbers: features cut into bands, each with a width, a row store and an address.

A plan says how many bytes it takes before anything is trained or written, see `Plan.bytes`.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from mlet_tf.errors import InputError

ADDRESSES = ("identity", "hash", "bitmap")
STORES = ("float32", "float16", "bfloat16", "float8", "int8", "int4", "columns", "pq")

CENTROIDS = 256  # Of each part of a product-quantised row: its codes are one byte.
HASH_PRIME = 2**31 - 1
BITMAP_IDS = 64  # Ids that share the eight bytes and the rank of one entry.

_ENTRY_BYTES = BITMAP_IDS // 8 + 4
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1, "int4": 0.5}
_SCALED = ("int8", "int4")


@dataclasses.dataclass(frozen=True)
class _Json:
    """Records of plain values, nested ones included, which JSON gives back equal."""

    def to_json(self) -> str:
        """Returns the record as JSON."""
        return json.dumps(dataclasses.asdict(self), default=np.ndarray.tolist)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Makes the record from `to_json()`."""
        return cls.from_plain(json.loads(text))

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Makes the record from dicts, lists and scalars."""
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Bytes of a served form.

    Attributes:
        rows: Rows, codebooks, scales, projections and mean rows.
        addresses: What turns an id into a row.
        vocabulary: Vocabulary files; they are part of the preprocessing and the same for all plans.
    """

    rows: int = 0
    addresses: int = 0
    vocabulary: int = 0

    @property
    def embedding(self) -> int:
        """Rows and addresses: the variables that a SavedModel has for the embeddings."""
        return self.rows + self.addresses

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(
            self.rows + other.rows, self.addresses + other.addresses, self.vocabulary + other.vocabulary
        )


@dataclasses.dataclass(frozen=True)
class Band(_Json):
    """Ids of one feature between two train frequencies.

    Attributes:
        stop: First id after the band; it begins where the one before ends.
        width: Columns that are kept of the feature's basis, at most `d`. With 0 all ids have the band's mean row.
        store: How a row is kept, one of `STORES`.
        address: Which row an id has, one of `ADDRESSES`: `identity` a row of its own, `hash` the sum of the rows
            that its hashes name, `bitmap` a row of its own for the `rows` ids that matter most and the band's mean row
            for all others.
        rows: Rows of a `hash` or `bitmap` band, None for `identity`.
        salts: Multiplier and offset of each hash, see `make_salts`.
        parts: Parts of a row with a codebook each, for `pq`; they divide `width`.
        wide: Columns of eight bits, the first ones, for `columns`; the others have four.

    Raises:
        InputError: A value is invalid.
    """

    stop: int
    width: int
    store: str = "float32"
    address: str = "identity"
    rows: int | None = None
    salts: tuple[tuple[int, int], ...] = ()
    parts: int | None = None
    wide: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "salts", tuple((int(a), int(b)) for a, b in self.salts))
        _require(self.store in STORES, "store", f"one of {', '.join(STORES)}", self.store)
        _require(self.address in ADDRESSES, "address", f"one of {', '.join(ADDRESSES)}", self.address)
        _require(self.width >= 0, "width", "at least 0", self.width)
        _require(
            (self.rows is None) == (self.address == "identity"), "rows", "given unless identity", self.rows
        )
        _require(self.rows is None or self.rows >= 1, "rows", "at least 1", self.rows)
        hashed = self.address == "hash"
        _require(bool(self.salts) == hashed, "salts", "given for hash alone", self.salts)
        _require(not hashed or (self.rows or 0) >= len(self.salts), "rows", "at least one a hash", self.rows)
        _require((self.parts is None) == (self.store != "pq"), "parts", "given for pq alone", self.parts)
        divides = self.parts is None or (self.parts >= 1 and self.width % self.parts == 0)
        _require(divides, "parts", f"a divisor of width {self.width}", self.parts)
        _require(
            (self.wide is None) == (self.store != "columns"), "wide", "given for columns alone", self.wide
        )
        fits = self.wide is None or 0 <= self.wide <= self.width
        _require(fits, "wide", f"0 to {self.width}", self.wide)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Makes the band from dicts, lists and scalars."""
        return cls(**{**values, "salts": tuple(map(tuple, values.get("salts", ())))})


@dataclasses.dataclass(frozen=True)
class FeaturePlan(_Json):
    """One table, which usually is one feature.

    Attributes:
        name: Its name; of features that share a table, the first one's stands for all.
        rows: All its ids V.
        bands: From the most frequent ids to the rarest, without the tail.
        tail: Ids at the end, OOV and missing. They have rows of their own, in width and store of the first band.

    Raises:
        InputError: The bands do not cover the ids.
    """

    name: str
    rows: int
    bands: tuple[Band, ...]
    tail: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        stops = [0, *(band.stop for band in self.bands)]
        rising = all(low <= high for low, high in itertools.pairwise(stops))
        whole = rising and stops[-1] == self.rows - self.tail and self.tail >= 0
        text = f"rising ends of bands, the last at {self.rows - self.tail}"
        _require(bool(self.bands) and whole, f"bands of feature {self.name}", text, stops[1:])
        for low, band in zip(stops, self.bands, strict=False):
            fewer = band.rows is None or band.rows <= band.stop - low
            _require(fewer, f"rows of feature {self.name}", f"at most {band.stop - low}", band.rows)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Makes the feature from dicts, lists and scalars."""
        return cls(**{**values, "bands": tuple(map(Band.from_plain, values["bands"]))})

    @property
    def width(self) -> int:
        """Columns of the widest band."""
        return max(band.width for band in self.bands)

    def is_projected(self, output_dim: int) -> bool:
        """Whether rows are coefficients in a basis, around the mean row of their band, rather than embeddings."""
        return any(
            band.width < output_dim or band.address == "bitmap" or band.store == "columns"
            for band in self.bands
        )

    def bytes(self, output_dim: int) -> Bytes:
        """Bytes of the feature in a plan of this width `d`."""
        total, low = Bytes(), 0
        for band in self.bands:
            total += band_bytes(band, band.stop - low)
            low = band.stop
        first = dataclasses.replace(self.bands[0], address="identity", rows=None, salts=())
        total += Bytes(rows=self.tail * row_bytes(first))
        if self.is_projected(output_dim):
            total += Bytes(rows=4 * output_dim * (self.width + len(self.bands)))
        return total


@dataclasses.dataclass(frozen=True)
class Plan(_Json):
    """How all features are served.

    Attributes:
        output_dim: Width `d` of an embedding.
        features: The features, in the order of the model.

    Raises:
        InputError: A band is wider than `output_dim`.
    """

    output_dim: int
    features: tuple[FeaturePlan, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        for feature in self.features:
            fits = feature.width <= self.output_dim
            _require(fits, f"width of feature {feature.name}", f"at most {self.output_dim}", feature.width)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Makes the plan from dicts, lists and scalars."""
        return cls(**{**values, "features": tuple(map(FeaturePlan.from_plain, values["features"]))})

    @classmethod
    def direct(cls, rows: Mapping[str, int], output_dim: int, store: str = "float32") -> Self:
        """One band of all columns for each feature.

        Args:
            rows: V by feature.
            output_dim: Width `d`.
            store: How rows are kept.
        """
        return cls(
            output_dim, tuple(FeaturePlan(n, v, (Band(v, output_dim, store),)) for n, v in rows.items())
        )

    @property
    def stores(self) -> list[str]:
        """The row stores that it has."""
        found = {band.store for feature in self.features for band in feature.bands}
        return [store for store in STORES if store in found]

    @property
    def bytes(self) -> Bytes:
        """Bytes of the served form, exactly those of its variables; vocabulary files are not counted here."""
        return sum((feature.bytes(self.output_dim) for feature in self.features), Bytes())


@dataclasses.dataclass(frozen=True)
class Budget(_Json):
    """What a compressed model may cost; exactly one is given.

    Attributes:
        bytes: Bytes of rows and addresses.
        ratio: How many times fewer they are than those of float32 tables of width `d`.
        max_auc_drop: AUC that may be lost.

    Raises:
        InputError: None or several are given, or a value is out of range.
    """

    bytes: int | None = None
    ratio: float | None = None
    max_auc_drop: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) != 1:
            raise InputError(
                f"Budget: expected exactly one of bytes, ratio and max_auc_drop. Received: {given or 'none'}"
            )
        if self.bytes is not None:
            _require(self.bytes > 0, "Budget: bytes", "above 0", self.bytes)
        if self.ratio is not None:
            _require(1 <= self.ratio < math.inf, "Budget: ratio", "a finite number of at least 1", self.ratio)
        if self.max_auc_drop is not None:
            _require(
                0 <= self.max_auc_drop < 1,
                "Budget: max_auc_drop",
                "at least 0 and below 1",
                self.max_auc_drop,
            )

    def limit(self, float32_bytes: int) -> int:
        """Returns the most bytes of rows and addresses, for a budget of bytes or a ratio.

        Args:
            float32_bytes: Bytes of float32 tables of width `d`.
        """
        if self.bytes is not None:
            return self.bytes
        if self.ratio is None:
            raise ValueError(f"A budget of AUC has no limit in bytes. Received: {self}")
        return int(float32_bytes / self.ratio)


@dataclasses.dataclass(frozen=True, eq=False)
class RowStatistics(_Json):
    """How often ids occur in the train split.

    Attributes:
        counts: For each feature int64 `[V]`, in the order of ids.
        tail: For each feature how many ids at the end are OOV and missing.
        vocabulary_bytes: Bytes of all vocabulary files.
    """

    counts: dict[str, np.ndarray]
    tail: dict[str, int]
    vocabulary_bytes: int = 0

    def __post_init__(self) -> None:
        counts = {name: np.asarray(values, np.int64) for name, values in self.counts.items()}
        object.__setattr__(self, "counts", counts)


def row_bytes(band: Band) -> int:
    """Bytes of one row of a band."""
    if band.store == "pq":
        return (band.parts or 0) if band.width else 0
    if band.width == 0:
        return 0
    if band.store == "columns":
        return math.ceil((band.width + (band.wide or 0)) / 2)
    return math.ceil(band.width * _VALUE_BYTES[band.store]) + (4 if band.store in _SCALED else 0)


def band_bytes(band: Band, ids: int) -> Bytes:
    """Bytes of a band of so many ids: rows, scale or codebook, bitmap. The feature's projection and means are apart."""
    if band.width == 0:
        return Bytes()
    rows = row_bytes(band) * (ids if band.rows is None else band.rows)
    shared = {"pq": 4 * CENTROIDS * band.width, "columns": 4 * band.width, "float8": 4}.get(band.store, 0)
    bitmap = math.ceil(ids / BITMAP_IDS) * _ENTRY_BYTES if band.address == "bitmap" else 0
    return Bytes(rows + shared, bitmap)


def make_salts(seed: int, feature: int, probes: int) -> tuple[tuple[int, int], ...]:
    """Draws the constants `(a, b)` of `probes` hashes `((a (x + 1) + b) mod (2^31 - 1)) mod M` of a feature.

    Args:
        seed: Seed.
        feature: Position of the feature: the same id of two features has different hashes.
        probes: Number of hashes.
    """
    draws = (np.random.default_rng([seed, feature, probe]) for probe in range(probes))
    return tuple((int(g.integers(1, HASH_PRIME)), int(g.integers(0, HASH_PRIME))) for g in draws)


def _require(holds: bool, what: str, allowed: str, received: object) -> None:
    if not holds:
        raise InputError(f"{what}: expected {allowed}. Received: {received}")
