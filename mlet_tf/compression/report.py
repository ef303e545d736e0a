"""What a compression tried and chose, as plain values for JSON."""

import dataclasses
from collections.abc import Sequence
from typing import TypedDict

from mlet_tf.compression.reads import ModelTable
from mlet_tf.embeddings.allocator import Allocation
from mlet_tf.embeddings.plan import Band, Budget, Bytes, FeaturePlan, row_bytes


class Scores(TypedDict):
    """What a model reaches on the choosing rows; None where there are none.

    Attributes:
        auc: AUC.
        auc_drop: By how much it is below that of the model as it was.
        auc_drop_error: Standard error of that, see `mlet_tf.metrics.auc_difference`.
        logloss: Logloss, in nats.
    """

    auc: float | None
    auc_drop: float | None
    auc_drop_error: float | None
    logloss: float | None


class PointReport(Scores):
    """A size that was tried.

    Attributes:
        ratio: How many times fewer bytes than float32 tables have.
        bytes: Bytes of rows and addresses.
        predicted_loss: Rise of the logloss that the allocator expected.
        within_budget: Whether it keeps to the budget.
        chosen: Whether it is the one.
    """

    ratio: float
    bytes: int
    predicted_loss: float
    within_budget: bool
    chosen: bool


class BandReport(TypedDict):
    """A band of a table: its ids, columns, row store, mean bits of a value, address and rows."""

    ids: int
    columns: int
    store: str
    bits: float
    address: str
    rows: int


class TableReport(TypedDict):
    """A table: rows V, columns kept, bytes as float32 and as chosen, and its bands."""

    name: str
    rows: int
    columns: int
    bytes_before: int
    bytes_after: int
    bands: list[BandReport]


class CompressionReport(TypedDict):
    """What `compression.json` holds; bytes are in three lines, see `mlet_tf.embeddings.Bytes`."""

    budget: dict[str, float]
    methods: list[str]
    output_dim: int
    choosing_rows: int
    fine_tuned: bool
    bytes_before: dict[str, int]
    bytes_after: dict[str, int]
    auc_before: float | None
    auc_after: float | None
    points: list[PointReport]
    tables: list[TableReport]


def make_report(
    budget: Budget,
    methods: Sequence[str],
    tables: Sequence[ModelTable],
    allocation: Allocation,
    points: list[PointReport],
    choosing_rows: int,
    vocabulary_bytes: int,
) -> CompressionReport:
    """Gathers what was tried and chosen.

    Args:
        budget: What was asked for.
        methods: What might be saved.
        tables: The tables of the model, in the order of the allocation.
        allocation: What was chosen.
        points: Sizes tried, from large to small; the first is the model as it was.
        choosing_rows: Rows that the choice was made on.
        vocabulary_bytes: Bytes of the vocabulary files.
    """
    chosen = next(point for point in points if point["chosen"])
    before = Bytes(sum(table.float32_bytes for table in tables), 0, vocabulary_bytes)
    return {
        "budget": {name: value for name, value in dataclasses.asdict(budget).items() if value is not None},
        "methods": list(methods),
        "output_dim": max(allocation.output_dims),
        "choosing_rows": choosing_rows,
        "fine_tuned": False,
        "bytes_before": dataclasses.asdict(before),
        "bytes_after": dataclasses.asdict(allocation.bytes + Bytes(vocabulary=vocabulary_bytes)),
        "auc_before": points[0]["auc"],
        "auc_after": chosen["auc"],
        "points": points,
        "tables": [
            _table(table, feature, width)
            for table, feature, width in zip(tables, allocation.features, allocation.output_dims, strict=True)
        ],
    }


def _table(table: ModelTable, feature: FeaturePlan, output_dim: int) -> TableReport:
    stops = [0, *(band.stop for band in feature.bands)]
    return {
        "name": table.name,
        "rows": feature.rows,
        "columns": feature.width,
        "bytes_before": table.float32_bytes,
        "bytes_after": feature.bytes(output_dim).embedding,
        "bands": [_band(band, band.stop - low) for band, low in zip(feature.bands, stops, strict=False)],
    }


def _band(band: Band, ids: int) -> BandReport:
    return {
        "ids": ids,
        "columns": band.width,
        "store": band.store,
        "bits": 8 * row_bytes(band) / band.width if band.width else 0.0,
        "address": band.address,
        "rows": ids if band.rows is None else band.rows,
    }
