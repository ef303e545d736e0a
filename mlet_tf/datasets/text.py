"""Reading a text chunk: blocks of whole lines, parsed to tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from mlet_tf.datasets import quoting
from mlet_tf.datasets.chunks import Block, Chunk, Reject, Source
from mlet_tf.datasets.convert import convert, convert_column, row_checks, text_types
from mlet_tf.datasets.schema import ClickLogSchema
from mlet_tf.datasets.values import is_utf8, may_hold_whole

_SMALL_READ_BYTES = 1 << 16
_TEXT_SHOWN = 200


def line_blocks(
    source: Source, chunk: Chunk, block_bytes: int, max_line_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yields the lines that begin in a chunk as blocks of whole lines.

    Args:
        source: The chunk's file, uncompressed; needs `read` and `seek` forwards.
        chunk: The chunk.
        block_bytes: About how much is held at a time.
        max_line_bytes: Longer lines that do not fit into a block are skipped.

    Yields:
        Offset in the file, and the lines or None for a line too long to be held.
    """
    end = float("inf") if chunk.end is None else chunk.end
    begin, held = chunk.start, b""
    if chunk.aligned:
        source.seek(begin)
    else:
        source.seek(begin - 1)
        begin, held = _after_line_end(source, begin - 1, b"", _SMALL_READ_BYTES)
    while begin < end:
        if cut := _end_of_lines(held, end - begin):
            yield begin, held[:cut]
            begin, held = begin + cut, held[cut:]
        elif len(held) > max_line_bytes:
            yield begin, None
            begin, held = _after_line_end(source, begin, held, block_bytes)
        else:
            left = end - begin - len(held)
            data = source.read(int(min(block_bytes, left if left > 0 else _SMALL_READ_BYTES)))
            if not data:
                if held:
                    yield begin, held
                return
            held += data


def _end_of_lines(held: bytes, own: float) -> int:
    """The end of the whole lines in `held` that begin within its first `own` bytes; 0 if there is none."""
    if len(held) >= own:
        # The last one contains byte `own - 1`.
        last = held.find(b"\n", int(own) - 1)
        if last >= 0:
            return last + 1
    return held.rfind(b"\n") + 1


def _after_line_end(source: Source, begin: int, held: bytes, block_bytes: int) -> tuple[int, bytes]:
    """Reads on to the byte after the next line end; returns its offset and what was read beyond."""
    while (cut := held.find(b"\n") + 1) == 0:
        begin += len(held)
        held = source.read(block_bytes)
        if not held:
            return begin, b""
    return begin + cut, held[cut:]


class TextParser:
    """Turns blocks of whole lines of one chunk into tables."""

    def __init__(self, chunk: Chunk, schema: ClickLogSchema, wanted: pa.Schema, max_line_bytes: int) -> None:
        self._chunk = chunk
        self._schema = schema
        self._wanted = wanted
        self._types = text_types(schema, wanted)
        self._max_line_bytes = max_line_bytes
        self._lines = 0
        self._has_floats = False  # Whether the last block had integers written as floats.

    def parse(self, offset: int, data: bytes | None) -> Block:
        """Parses the lines that begin at byte `offset`; None stands for one line too long to be held."""
        if data is None:
            reject = Reject(self._chunk.path, self._lines + 1, _too_long(self._max_line_bytes), "")
            self._lines += 1
            return Block(
                self._wanted.empty_table(), np.empty(0, np.int64), [reject], 1, np.zeros(1, np.int64)
            )
        lines = _Lines(data)
        table = self._parse_good(data, lines)
        if table is not None:
            block = Block(table, offset + lines.starts, [], lines.count)
        else:
            block = self._parse_bad(offset, data, lines)
        self._lines += lines.count
        return block

    def _parse_good(self, data: bytes, lines: _Lines) -> pa.Table | None:
        """Parses a block without bad rows; None if there are any."""
        if b"\0" in data or lines.longest > self._max_line_bytes or not is_utf8(data):
            return None
        if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
            return None
        if self._may_quote(data) and not quoting.lines_fit(data, self._schema.separator, self._chunk.quoting):
            return None
        may_hold_floats = may_hold_whole(data)
        table = None if self._has_floats and may_hold_floats else self._read_good(data, lines, self._types)
        if table is None and may_hold_floats:
            table = self._read_good(data, lines, _all_binary(self._wanted))
            self._has_floats = table is not None
        return table

    def _read_good(self, data: bytes, lines: _Lines, types: pa.Schema) -> pa.Table | None:
        """Reads columns in their wanted types or, if Arrow cannot, as texts to be converted."""
        try:
            table = self._read_csv(data, types, self._schema.missing_marks)
        except pa.ArrowInvalid:
            return None
        if table.num_rows != len(lines.starts):
            return None
        table = self._convert_texts(data, table)
        return table if table is not None and self._is_valid(table) else None

    def _may_quote(self, data: bytes) -> bool:
        return self._chunk.quoting != "none" and b'"' in data

    def _convert_texts(self, data: bytes, table: pa.Table) -> pa.Table | None:
        """Converts what Arrow's reader does not: times and labels in text, and whole numbers such as `5.0`."""
        if table.schema == self._wanted and not may_hold_whole(data):
            return table
        for place, (name, kind) in enumerate(zip(table.column_names, table.schema.types, strict=True)):
            if kind == pa.binary():
                values, bad = convert_column(table[name].combine_chunks(), name, self._schema)
                if bad.any():
                    return None
                table = table.set_column(place, name, values)
        return table

    def _is_valid(self, table: pa.Table) -> bool:
        for name, check in row_checks(self._schema).items():
            if name in table.column_names:
                column = table[name]
                if column.null_count or not check.valid(column.to_numpy()).all():
                    return False
        return True

    def _parse_bad(self, offset: int, data: bytes, lines: _Lines) -> Block:
        """Parses a block with bad rows: removes bad lines, then finds bad values by column."""
        reasons = self._bad_lines(data, lines)
        good = np.setdiff1d(np.arange(len(lines.starts)), list(reasons))
        texts = self._read_csv(lines.without(data, reasons), _all_binary(self._wanted), ())
        if texts.num_rows != len(good):
            raise RuntimeError(f"{self._chunk.path}: {texts.num_rows} rows parsed out of {len(good)} lines")
        columns, bad_values = convert(texts, self._wanted, self._schema)
        for row, reason in bad_values.items():
            reasons[int(good[row])] = reason
        keep = np.ones(len(good), bool)
        keep[list(bad_values)] = False
        table = pa.Table.from_arrays(columns, schema=self._wanted).filter(pa.array(keep)).combine_chunks()
        rejects = [
            Reject(self._chunk.path, self._lines + int(lines.numbers[i]) + 1, reasons[i], lines.text(data, i))
            for i in sorted(reasons)
        ]
        rejected = np.array(sorted(reasons), np.int64)
        return Block(table, offset + lines.starts[good[keep]], rejects, lines.count, rejected)

    def _bad_lines(self, data: bytes, lines: _Lines) -> dict[int, str]:
        """Finds the lines that cannot be parsed, by number among those that are not empty."""
        array = np.frombuffer(data, np.uint8)
        reasons: dict[int, str] = {}

        def add(found: np.ndarray, reason: str) -> None:
            for i in found.tolist():
                reasons.setdefault(i, reason)

        add(np.flatnonzero(lines.ends - lines.starts > self._max_line_bytes), _too_long(self._max_line_bytes))
        add(lines.with_byte(array == 0), "the line holds a NUL byte")
        for i in lines.with_byte(array >= 128).tolist():
            if not is_utf8(data[lines.starts[i] : lines.ends[i]]):
                reasons.setdefault(i, "the line is not UTF-8")
        add(lines.with_byte(array == 13), "a carriage return stands inside the line")
        expected = len(self._chunk.columns)
        separator = self._schema.separator
        fields = lines.counts(array == ord(separator)) + 1
        if self._may_quote(data):
            texts = quoting.lines_array(data, lines.starts)
            for i in np.flatnonzero(quoting.misquoted(texts, separator, self._chunk.quoting)).tolist():
                line = data[lines.starts[i] : lines.ends[i]]
                reasons.setdefault(i, quoting.reason(line, separator, self._chunk.quoting))
            if self._chunk.quoting == "rfc4180":
                fields = quoting.field_counts(texts, separator)
        for i in np.flatnonzero(fields != expected).tolist():
            reasons.setdefault(i, f"expected {expected} columns. Received: {fields[i]}")
        return reasons

    def _read_csv(self, data: bytes, types: pa.Schema, missing: Sequence[str]) -> pa.Table:
        if not data:
            return types.empty_table()
        quoted = self._chunk.quoting == "rfc4180"
        return pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(
                column_names=self._chunk.columns, use_threads=False, block_size=len(data) + 1
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=self._schema.separator,
                quote_char='"' if quoted else False,
                double_quote=quoted,
                escape_char=False,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=types,
                include_columns=types.names,
                null_values=list(missing),
                strings_can_be_null=bool(missing),
            ),
        )


class _Lines:
    """Where the lines of a block are; `starts`, `ends` and `numbers` are of those that are not empty."""

    def __init__(self, data: bytes) -> None:
        array = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(array == 10)
        if not data.endswith(b"\n"):
            ends = np.append(ends, len(data))
        starts = np.concatenate([[0], ends[:-1] + 1])
        self._next = ends + 1
        ends = ends - ((ends > starts) & (array[np.maximum(ends - 1, 0)] == 13))
        filled = np.flatnonzero(ends > starts)
        self.count = len(starts)
        self.numbers, self.starts, self.ends = filled, starts[filled], ends[filled]
        self._next = self._next[filled]
        self.longest = int((self.ends - self.starts).max(initial=0))

    def counts(self, mask: np.ndarray) -> np.ndarray:
        """How many of the bytes marked are in each line."""
        return np.bincount(self._lines_of(mask), minlength=len(self.starts))

    def with_byte(self, mask: np.ndarray) -> np.ndarray:
        """Lines with at least one of the bytes marked."""
        return np.unique(self._lines_of(mask))

    def without(self, data: bytes, lines: Collection[int]) -> bytes:
        """The block with some lines cut out."""
        keep = np.ones(len(data), bool)
        for i in lines:
            keep[self.starts[i] : self._next[i]] = False
        return np.frombuffer(data, np.uint8)[keep].tobytes()

    def text(self, data: bytes, line: int) -> str:
        """The beginning of a line, readable."""
        begin = self.starts[line]
        return data[begin : min(self.ends[line], begin + _TEXT_SHOWN)].decode("utf-8", "backslashreplace")

    def _lines_of(self, mask: np.ndarray) -> np.ndarray:
        places = np.flatnonzero(mask)
        lines = np.searchsorted(self.starts, places, side="right") - 1
        inside = lines >= 0
        inside[inside] = places[inside] < self.ends[lines[inside]]
        return lines[inside]


def _all_binary(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(name, pa.binary()) for name in schema.names])


def _too_long(max_line_bytes: int) -> str:
    return f"the line should have at most {max_line_bytes} bytes. Received: more"
