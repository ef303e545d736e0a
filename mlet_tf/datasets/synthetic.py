"""Synthetic click logs in a real log's format, with clicks from a known teacher.

Because the probability of every click is known, so are the best AUC and the lowest logloss that any model can
reach; both are stored beside the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlet_tf import strict_json
from mlet_tf.datasets.schema import ClickLogSchema
from mlet_tf.datasets.times import derive, yymmddhh
from mlet_tf.datasets.truth import Score, TeacherReport
from mlet_tf.datasets.writing import log_writer
from mlet_tf.errors import InputError, reason
from mlet_tf.storage import aside_path

# Rows are drawn in batches of this size, each from its own generator: the file depends on nothing else.
_BATCH_ROWS = 16_384
_CALIBRATION_BATCH = 1 << 40
_SMALLEST_VOCABULARY = 4
_START_HOUR = 392_712  # 2014-10-20 00 h, a Monday.
_TIME_HOURS = 240
# id * _CODE_FACTOR + feature * _CODE_STEP modulo 2^32 writes an id as 8 hexadecimal digits, without collisions.
_CODE_FACTOR, _CODE_STEP, _CODE_MODULUS = 0x9E3779B1, 0x85EBCA77, 1 << 32


class Teacher:
    """The model behind a synthetic log.

    The logit of a click is the sum of an intercept, an effect of each category, a product `<u, v>` of rank
    `rank` for each pair of categories, and a linear effect of each integer's logarithm; missing values have their own
    effects. A share `noise` of the rows ignores all this and clicks at the rate `ctr`.

    Args:
        schema: Columns of the log.
        seed: Draws the teacher's effects and the rows.
        rank: Rank of the interactions between categories.
        ctr: Click-through rate.
        vocabulary: Categories of the largest feature; the others are smaller, down to 4, by equal factors.
        power: The category of rank r has a share in proportion to `r ** -power`.
        missing: Average share of missing values in integer and categorical columns; none if the schema has no mark
            for them.
        strength: Approximate standard deviation of the logit.
        noise: Share of rows with a click that no feature explains.
    """

    def __init__(
        self,
        schema: ClickLogSchema,
        seed: int = 0,
        *,
        rank: int = 8,
        ctr: float = 0.25,
        vocabulary: int = 20_000,
        power: float = 1.1,
        missing: float = 0.1,
        strength: float = 1.5,
        noise: float = 0.05,
    ) -> None:
        _check_teacher(seed, rank, ctr, vocabulary, power, missing, strength, noise)
        self.schema = schema
        self.arguments: dict[str, int | float] = {
            **{"seed": seed, "rank": rank, "ctr": ctr, "vocabulary": vocabulary, "power": power},
            **{"missing": missing, "strength": strength, "noise": noise},
        }
        self._seed, self._rank, self._ctr, self._power, self._noise = seed, rank, ctr, power, noise
        rng = np.random.default_rng([seed, 0])
        categories, integers = len(schema.categoricals), len(schema.integers)
        self._sizes = rng.permutation(
            np.geomspace(_SMALLEST_VOCABULARY, max(vocabulary, _SMALLEST_VOCABULARY), categories).round()
        ).astype(np.int64)
        self._missing = _missing_shares(rng, categories + integers, missing if schema.missing else 0.0)
        pairs = max(1, categories * (categories - 1) / 2)
        # One row more than categories: the last is for a missing value.
        shapes = [(int(size) + 1,) for size in self._sizes]
        self._codes = [_hex_codes(i, int(size)) for i, size in enumerate(self._sizes)]
        share = 0.7 * strength / math.sqrt(max(1, categories))
        self._effects = [(rng.standard_normal(shape) * share).astype(np.float32) for shape in shapes]
        scale = math.sqrt(0.5 * strength) / pairs**0.25 / rank**0.25
        self._factors = [(rng.standard_normal((*shape, rank)) * scale).astype(np.float32) for shape in shapes]
        self._means = rng.uniform(0.5, 5.0, integers)
        self._spreads = rng.uniform(0.7, 1.6, integers)
        weight = 0.5 * strength / math.sqrt(max(1, integers))
        self._slopes = rng.standard_normal(integers) * weight
        self._integer_missing = rng.standard_normal(integers) * weight
        self._time_effects = {
            "hour_of_day": rng.standard_normal(24) * 0.2 * strength,
            "weekday": rng.standard_normal(7) * 0.1 * strength,
        }
        self.intercept = 0.0
        self.intercept = self._calibrate()

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """Number of categories by feature."""
        return dict(zip(self.schema.categoricals, self._sizes.tolist(), strict=True))

    @property
    def missing_shares(self) -> dict[str, float]:
        """Share of missing values by raw column."""
        names = (*self.schema.categoricals, *self.schema.integers)
        return dict(zip(names, self._missing.round(6).tolist(), strict=True))

    def batches(self, rows: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Draws the log.

        Args:
            rows: Rows of the whole log. They are in order of time; except for the time column, a shorter log is the
                beginning of a longer one.

        Yields:
            Tables of all columns of the schema, missing values as null, and the true probabilities of a click.
        """
        for first in range(0, rows, _BATCH_ROWS):
            count = min(_BATCH_ROWS, rows - first)
            rng = np.random.default_rng([self._seed, 1 + first // _BATCH_ROWS])
            ids, integers, draws = self._draw(rng)
            ids, integers, draws = ids[:, :count], integers[:, :count], draws[:count]
            numbers = np.arange(first, first + count)
            times = self._times(numbers, rows)
            probabilities = self._probabilities(ids, integers, times)
            yield self._table(ids, integers, times, numbers, draws < probabilities), probabilities

    def probabilities(self, table: pa.Table) -> np.ndarray:
        """Computes the true probability of a click for rows read back from a log of this teacher.

        Args:
            table: Columns as `read_log` gives them.

        Returns:
            float64 `[rows]`.
        """
        ids = np.stack([self._ids_of(i, table[name]) for i, name in enumerate(self.schema.categoricals)])
        integers = np.empty((len(self.schema.integers), table.num_rows))
        for i, name in enumerate(self.schema.integers):
            integers[i] = table[name].cast(pa.float64()).fill_null(np.nan).to_numpy()
        time = self.schema.time
        return self._probabilities(ids, integers, table[time.name].to_numpy() if time else None)

    def _calibrate(self) -> float:
        """Finds the intercept for the wanted click-through rate, on separate rows."""
        ids, integers, _ = self._draw(np.random.default_rng([self._seed, _CALIBRATION_BATCH]))
        logits = self._logits(ids, integers, self._times(np.arange(_BATCH_ROWS), _BATCH_ROWS))
        low, high = -50.0, 50.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if _sigmoid(logits + middle).mean() < self._ctr else (low, middle)
        return (low + high) / 2

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws one whole batch: ids (the largest is the missing one), integers (nan is missing), luck of the click."""
        categories, integers = len(self._sizes), len(self._means)
        ids = np.empty((categories, _BATCH_ROWS), np.int64)
        for i, size in enumerate(self._sizes):
            ids[i] = _power_law(rng.random(_BATCH_ROWS), int(size), self._power)
            ids[i][rng.random(_BATCH_ROWS) < self._missing[i]] = size
        values = np.empty((integers, _BATCH_ROWS))
        for i in range(integers):
            logs = self._means[i] + self._spreads[i] * rng.standard_normal(_BATCH_ROWS)
            values[i] = np.floor(np.exp(np.minimum(logs, 16.0))) - 1
            values[i][rng.random(_BATCH_ROWS) < self._missing[categories + i]] = np.nan
        return ids, values, rng.random(_BATCH_ROWS)

    def _times(self, numbers: np.ndarray, rows: int) -> np.ndarray | None:
        if self.schema.time is None:
            return None
        if self.schema.time.format != "yymmddhh":
            return _START_HOUR * 3600 + numbers * (_TIME_HOURS * 3600) // rows
        return yymmddhh(_START_HOUR + numbers * _TIME_HOURS // rows)

    def _probabilities(self, ids: np.ndarray, integers: np.ndarray, times: np.ndarray | None) -> np.ndarray:
        known = _sigmoid(self._logits(ids, integers, times) + self.intercept)
        return (1 - self._noise) * known + self._noise * self._ctr

    def _logits(self, ids: np.ndarray, integers: np.ndarray, times: np.ndarray | None) -> np.ndarray:
        rows = next(len(column) for column in (*ids, *integers, times) if column is not None)
        logits = np.zeros(rows)
        total, squares = np.zeros((rows, self._rank), np.float32), np.zeros(rows)
        for i, of_feature in enumerate(ids):
            logits += self._effects[i][of_feature]
            factors = self._factors[i][of_feature]
            total += factors
            squares += np.einsum("nr,nr->n", factors, factors)
        # The sum over all pairs of <u, v>, from the square of the sum.
        logits += 0.5 * (np.einsum("nr,nr->n", total, total) - squares)
        for i, values in enumerate(integers):
            scaled = (np.log1p(np.maximum(values, -0.5)) - self._means[i]) / self._spreads[i]
            logits += np.where(np.isnan(values), self._integer_missing[i], self._slopes[i] * scaled)
        time = self.schema.time
        if times is not None and time is not None:
            whole = dataclasses.replace(time, derive=tuple(self._time_effects))
            for name, values in derive(times, whole).items():
                logits += self._time_effects[name][values]
        return logits

    def _table(
        self,
        ids: np.ndarray,
        integers: np.ndarray,
        times: np.ndarray | None,
        numbers: np.ndarray,
        clicks: np.ndarray,
    ) -> pa.Table:
        columns: dict[str, pa.Array] = {name: pa.array(numbers) for name in self.schema.drop}
        columns[self.schema.label] = pa.array(clicks.astype(np.int64))
        for i, name in enumerate(self.schema.categoricals):
            columns[name] = self._codes[i].take(pa.array(ids[i]))
        for i, name in enumerate(self.schema.integers):
            mask = np.isnan(integers[i])
            columns[name] = pa.array(np.where(mask, 0, integers[i]).astype(np.int64), mask=mask)
        if times is not None and self.schema.time is not None:
            columns[self.schema.time.name] = pa.array(times)
        return pa.table({name: columns[name] for name in self.schema.columns})

    def _ids_of(self, feature: int, column: pa.ChunkedArray) -> np.ndarray:
        """The ids behind hexadecimal codes; the largest id for a missing value."""
        encoded = column.combine_chunks().dictionary_encode()
        codes = np.array([int(code, 16) for code in encoded.dictionary.to_pylist()], np.uint64)
        inverse = pow(_CODE_FACTOR, -1, _CODE_MODULUS)
        ids = (codes + np.uint64(_CODE_MODULUS - feature * _CODE_STEP % _CODE_MODULUS)) * np.uint64(inverse)
        ids = (ids % np.uint64(_CODE_MODULUS)).astype(np.int64)
        index = encoded.indices.fill_null(len(ids)).to_numpy()
        return np.append(ids, self._sizes[feature])[index]


def write_log(
    path: str | Path,
    schema: ClickLogSchema,
    rows: int,
    seed: int = 0,
    *,
    progress: Callable[[int], None] | None = None,
    **teacher: Any,
) -> TeacherReport:
    """Writes a synthetic click log and its `TeacherReport`.

    The rows depend on the arguments alone. Memory does not grow with `rows`. The file appears when it is complete.

    Args:
        path: Where to write: Parquet if it ends in `.parquet`, compressed if in `.gz`, else plain text.
        schema: Columns and format.
        rows: How many rows.
        seed: Draws the teacher and the rows.
        progress: Called from time to time with the number of rows written so far.
        **teacher: More arguments of `Teacher`.

    Returns:
        The report.

    Raises:
        InputError: An argument does not fit, or the file cannot be written.
    """
    if rows < 1:
        raise InputError(f"`rows` should be at least 1. Received: {rows}")
    model = Teacher(schema, seed, **teacher)
    score = Score()
    path = Path(path)
    unfinished = aside_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with log_writer(path, unfinished, schema) as write:
            for table, probabilities in model.batches(rows):
                write(table)
                score.add(table[schema.label].to_numpy(), probabilities)
                if progress is not None:
                    progress(score.rows)
        report = TeacherReport(
            schema=schema.name,
            teacher=model.arguments,
            intercept=model.intercept,
            vocabulary_sizes=model.vocabulary_sizes,
            missing_shares=model.missing_shares,
            **score.values(),
        )
        strict_json.write(TeacherReport.path_for(path), dataclasses.asdict(report), indent=2)
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
    return report


def _hex_codes(feature: int, size: int) -> pa.Array:
    """The texts of a feature's categories, and null for the missing one."""
    ids = np.arange(size, dtype=np.uint64)
    codes = (ids * np.uint64(_CODE_FACTOR) + np.uint64(feature * _CODE_STEP)).astype(np.uint32)
    nibbles = (codes[:, None] >> np.arange(28, -4, -4, dtype=np.uint32)) & np.uint32(15)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[nibbles]
    texts = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), size, [None, pa.py_buffer(digits.tobytes())])
    return pa.concat_arrays([texts.cast(pa.binary()), pa.array([None], pa.binary())])


def _power_law(uniform: np.ndarray, size: int, power: float) -> np.ndarray:
    """Ranks 0..size-1 with shares in proportion to about `(rank + 1) ** -power`, by inverting the integral."""
    if abs(power - 1) < 1e-9:
        ranks = (size + 1) ** uniform
    else:
        ranks = (1 + uniform * ((size + 1) ** (1 - power) - 1)) ** (1 / (1 - power))
    return np.clip(ranks.astype(np.int64) - 1, 0, size - 1)


def _missing_shares(rng: np.random.Generator, columns: int, average: float) -> np.ndarray:
    """Every other column has no missing values, the rest share them out unevenly."""
    shares = rng.uniform(0, 1, columns) * (rng.permutation(columns) % 2 == 0)
    return np.minimum(shares * average * columns / max(shares.sum(), 1e-9), 0.9)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _check_teacher(
    seed: int,
    rank: int,
    ctr: float,
    vocabulary: int,
    power: float,
    missing: float,
    strength: float,
    noise: float,
) -> None:
    checks = {
        "seed": (seed, seed >= 0, "at least 0"),
        "rank": (rank, 1 <= rank <= 65_536, "from 1 to 65536"),
        "ctr": (ctr, 0 < ctr < 1, "between 0 and 1"),
        "vocabulary": (vocabulary, 1 <= vocabulary < 1 << 31, "from 1 to 2147483647"),
        "power": (power, power >= 0, "at least 0"),
        "missing": (missing, 0 <= missing <= 0.5, "from 0 to 0.5"),
        "strength": (strength, strength >= 0, "at least 0"),
        "noise": (noise, 0 <= noise <= 1, "from 0 to 1"),
    }
    for name, (value, fits, expected) in checks.items():
        if not fits:
            raise InputError(f"`{name}` should be {expected}. Received: {value}")
