"""Where the bands of a plan are in the variables of a table, and which ids are looked up together."""

import dataclasses
import itertools
from collections.abc import Iterator

from mlet_tf.embeddings.plan import BITMAP_IDS, Band, FeaturePlan, Plan, row_bytes


@dataclasses.dataclass(frozen=True)
class Form:
    """What bands that share a variable have in common.

    Attributes:
        store: Row store.
        width: Columns of a row, or its bytes for `columns`, where rows of several widths have as many.
        parts: Parts of a product-quantised row, else 0.
    """

    store: str
    width: int
    parts: int

    @classmethod
    def of(cls, band: Band) -> "Form":
        """The form of a band."""
        if not band.width:
            return cls("float32", 0, 0)
        return cls(band.store, row_bytes(band) if band.store == "columns" else band.width, band.parts or 0)


@dataclasses.dataclass
class Storage:
    """Rows of all bands of one form.

    Attributes:
        form: The form.
        bands: The bands: each has scales or a codebook of its own.
        counts: Rows of each band.
    """

    form: Form
    bands: list[Band] = dataclasses.field(default_factory=list)
    counts: list[int] = dataclasses.field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of all bands."""
        return sum(self.counts)

    @property
    def width(self) -> int:
        """Columns of the widest row."""
        return max(band.width for band in self.bands)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a band is.

    Attributes:
        feature: Position of its feature in the plan.
        band: The band.
        start: Its first id, of all features' ids one after another.
        ids: Ids of the band.
        tail: First id of the tail, for the first band of a feature with one, else None.
        tail_ids: Ids of that tail.
        first_id: First id of the feature.
        storage: Position of its storage.
        slot: Position of its scale or codebook in the storage.
        row: Its first row in the storage; those of the tail come after its own.
        rows: Its own rows, without the tail's.
        entry: Its first entry in the bitmap.
        mean: Position of its mean row, None where its feature has none.
    """

    feature: int
    band: Band
    start: int
    ids: int
    tail: int | None
    tail_ids: int
    first_id: int
    storage: int
    slot: int
    row: int
    rows: int
    entry: int
    mean: int | None


@dataclasses.dataclass(frozen=True)
class Segment:
    """Ids from `start` on that are looked up alike.

    Attributes:
        start: First id.
        address: How an id becomes a row.
        place: The band.
        shift: Row minus id, for `identity`.
    """

    start: int
    address: str
    place: Place
    shift: int

    @property
    def lookup(self) -> tuple[int, str, int]:
        """Segments with the same value are looked up together."""
        return self.place.storage, self.address, len(self.place.band.salts) if self.address == "hash" else 0


class Layout:
    """The layout of a plan.

    Attributes:
        storages: The variables of rows.
        places: The bands.
        segments: All ids in order, in as few segments as can be.
        entries: Entries of the bitmap.
        means: Mean rows.
        lookups: For each lookup the positions of its segments.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.storages: list[Storage] = []
        self.places: list[Place] = []
        self.entries = self.means = 0
        self._forms: dict[Form, int] = {}
        self.feature_starts = [0, *itertools.accumulate(feature.rows for feature in plan.features)]
        for position, feature in enumerate(plan.features):
            self._place(position, feature)
        self.segments = list(self._merged(sorted(self._all_segments(), key=lambda segment: segment.start)))
        self.lookups: dict[tuple[int, str, int], list[int]] = {}
        for number, segment in enumerate(self.segments):
            self.lookups.setdefault(segment.lookup, []).append(number)

    @property
    def rows(self) -> int:
        """Ids of all features."""
        return self.feature_starts[-1]

    @property
    def projected(self) -> list[bool]:
        """Whether each feature's rows are coefficients, to be multiplied with its projection."""
        return [feature.is_projected(self.plan.output_dim) for feature in self.plan.features]

    def _place(self, position: int, feature: FeaturePlan) -> None:
        start, projected = self.feature_starts[position], feature.is_projected(self.plan.output_dim)
        for number, band in enumerate(feature.bands):
            form = Form.of(band)
            index = self._forms.setdefault(form, len(self.storages))
            if index == len(self.storages):
                self.storages.append(Storage(form))
            storage, tail_ids = self.storages[index], feature.tail if number == 0 else 0
            stop = self.feature_starts[position] + band.stop
            rows = band.rows if band.rows is not None else stop - start
            self.places.append(
                Place(
                    feature=position,
                    band=band,
                    start=start,
                    ids=stop - start,
                    tail=self.feature_starts[position + 1] - tail_ids if tail_ids else None,
                    tail_ids=tail_ids,
                    first_id=self.feature_starts[position],
                    storage=index,
                    slot=len(storage.bands),
                    row=storage.rows,
                    rows=rows,
                    entry=self.entries,
                    mean=self.means if projected else None,
                )
            )
            storage.bands.append(band)
            storage.counts.append(rows + tail_ids)
            self.means += projected
            if band.address == "bitmap" and band.width:
                self.entries += -(-(stop - start) // BITMAP_IDS)
            start = stop

    def _all_segments(self) -> Iterator[Segment]:
        for place in self.places:
            if place.ids:
                yield Segment(
                    place.start,
                    place.band.address if place.band.width else "identity",
                    place,
                    place.row - place.start,
                )
            if place.tail is not None:
                yield Segment(place.tail, "identity", place, place.row + place.rows - place.tail)

    def _merged(self, segments: list[Segment]) -> Iterator[Segment]:
        """Joins neighbours that nothing tells apart."""
        last: tuple | None = None
        for segment in segments:
            form = self.storages[segment.place.storage].form
            slot = segment.place.slot if form.store in ("float8", "columns", "pq") else None
            key = (segment.lookup, segment.shift, slot, segment.place.mean)
            if segment.address != "identity" or key != last:
                yield segment
            last = key
