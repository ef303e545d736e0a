"""Quoted fields of text files, as in RFC 4180, but without line breaks inside quotes."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlet_tf.datasets.schema import ClickLogSchema

# Separators of formats that do not quote.
_NEVER_QUOTED = "\t\x01"
_QUOTED = r'"[^"]*(?:""[^"]*)*"'

OPEN = (
    "a quoted field does not end on its line (line breaks inside quotes are not read; where a quote is part of "
    "the value, say `quoting: none` in the schema)"
)
TRAILING = "text follows the closing quote of a field"
UNEXPECTED = (
    "the line has a quoted field, and the first lines of the file had none: say in the schema whether "
    "`quoting` is rfc4180 or none"
)


def resolve(schema: ClickLogSchema, lines: Iterable[bytes]) -> str:
    """Tells by its first lines how a file is quoted.

    Args:
        schema: Says how its files may be quoted.
        lines: The first lines of the file, its header included.

    Returns:
        `"rfc4180"`, `"none"`, or `"auto"` if quotes are possible but none were seen.
    """
    if schema.quoting != "auto":
        return schema.quoting
    if schema.separator in _NEVER_QUOTED:
        return "none"
    quoted = re.compile(_quoted_field(schema.separator).encode())
    return "rfc4180" if any(b'"' in line and quoted.search(line) for line in lines) else "auto"


def split(line: bytes, separator: str, quoting: str) -> list[bytes] | None:
    """The unquoted fields of one line without its line end; None if quotes are misplaced."""
    if quoting != "rfc4180" or b'"' not in line:
        return line.split(separator.encode())
    field = re.compile(rf'({_QUOTED})|([^"{re.escape(separator)}][^{re.escape(separator)}]*|)'.encode())
    fields, place = [], 0
    while True:
        found = field.match(line, place)
        assert found is not None  # The last alternative is nothing at all.
        quoted = found[1]
        fields.append(quoted[1:-1].replace(b'""', b'"') if quoted is not None else found[2])
        place = found.end()
        if place == len(line):
            return fields
        if line[place : place + 1] != separator.encode():
            return None
        place += 1


def field(text: str, schema: ClickLogSchema) -> str:
    """A text as a field of a file of the schema, in quotes where it needs them and files may be quoted."""
    may_quote = schema.quoting == "rfc4180" or (
        schema.quoting == "auto" and schema.separator not in _NEVER_QUOTED
    )
    if may_quote and (schema.separator in text or '"' in text):
        return '"' + text.replace('"', '""') + '"'
    return text


def lines_fit(data: bytes, separator: str, quoting: str) -> bool:
    """Whether no line of a block has misplaced quotes."""
    starts = np.flatnonzero(np.frombuffer(data, np.uint8) == 10) + 1
    lines = lines_array(data, np.concatenate([[0], starts[starts < len(data)]]))
    return not misquoted(lines, separator, quoting).any()


def lines_array(data: bytes, starts: np.ndarray) -> pa.Array:
    """Lines as a binary array that shares the block's memory; each extends to the start of the next."""
    offsets = np.append(starts, len(data)).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(starts), buffers)


def misquoted(lines: pa.Array, separator: str, quoting: str) -> np.ndarray:
    """Mask of the lines with misplaced quotes, bool."""
    if quoting == "auto":
        return np.asarray(pc.match_substring_regex(lines, _quoted_field(separator)))
    sep = re.escape(separator)
    field = rf'(?:{_QUOTED}|[^"{sep}\r\n][^{sep}\r\n]*|)'
    return ~np.asarray(pc.match_substring_regex(lines, rf"^{field}(?:{sep}{field})*[\r\n]*$"))


def field_counts(lines: pa.Array, separator: str) -> np.ndarray:
    """The number of fields of each line by RFC 4180, int64."""
    sep = re.escape(separator)
    bare = pc.replace_substring_regex(lines, rf"(^|{sep}){_QUOTED}", r"\1")
    return pc.count_substring(bare, separator).to_numpy().astype(np.int64) + 1


def reason(line: bytes, separator: str, quoting: str) -> str:
    """Why the quotes of a line are misplaced."""
    if quoting == "auto":
        return UNEXPECTED
    sep = re.escape(separator)
    trailing = re.search(rf'(?:^|{sep}){_QUOTED}[^"{sep}\r\n]'.encode(), line)
    return TRAILING if trailing else OPEN


def _quoted_field(separator: str) -> str:
    sep = re.escape(separator)
    return rf"(?:^|{sep}){_QUOTED}(?:{sep}|[\r\n]*$)"
