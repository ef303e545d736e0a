"""Opening Parquet files, and telling damaged files from those that this version of Arrow cannot read."""

from __future__ import annotations

import contextlib
import io
import re
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow_hotfix  # noqa: F401 (pyarrow below 14.0.1 runs code that a Parquet file holds: CVE-2023-47248)

from mlet_tf import storage
from mlet_tf.errors import InputError, reason

# Errors of Arrow; lack of memory is not the fault of the file.
PARQUET_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError)

# Every version of Arrow reads these.
_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}
_LACKING = re.compile(r"not (yet )?implemented|support|recognized|unknown|codec", re.IGNORECASE)
# A nonce and a tag after the footer.
_SIGNATURE_BYTES = 12 + 16
_ADVICE = "write the file again with plain or dictionary encoding and snappy, gzip or zstd"


@contextlib.contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file and reads its footer.

    Raises:
        InputError: The file cannot be read, is not Parquet, or needs a feature that this Arrow lacks.
    """
    with storage.open_binary(path) as source:
        try:
            file = pq.ParquetFile(source)
        except PARQUET_ERRORS as error:
            raise _footer_error(path, error) from error
        except RuntimeError:  # From pyarrow_hotfix.
            raise InputError(
                f"{path} has a column of a pickled Python type, which could run code: not read"
            ) from None
        if _is_signed(source, file.metadata):
            raise InputError(f"{path} is an encrypted Parquet file: decrypt it first")
        yield file


def rows_error(
    path: str, error: Exception, groups: Sequence[int], columns: Sequence[str], row: int
) -> InputError:
    """The error for rows that cannot be read.

    Args:
        path: The file.
        error: Arrow's error.
        groups: The row groups that were read.
        columns: The columns that were read.
        row: The approximate row.

    Returns:
        The error to be raised.
    """
    if getattr(error, "errno", None):
        return InputError(f"{path} cannot be read: {reason(error)}")
    if _is_lacking(error) and (found := _lacking_column(path, groups, columns)):
        return InputError(f"{path}: Arrow {pa.__version__} cannot read {found}; {_ADVICE}")
    return InputError(f"{path} is a damaged Parquet file: reading failed near row {row} ({_line(error)})")


def _is_signed(source: BinaryIO, metadata: pq.FileMetaData) -> bool:
    """Whether the footer is readable but columns are encrypted: reading these makes Arrow end the process."""
    source.seek(-8, io.SEEK_END)
    (size,) = struct.unpack("<I", source.read(4))
    return size == metadata.serialized_size + _SIGNATURE_BYTES


def _footer_error(path: str, error: Exception) -> InputError:
    if getattr(error, "errno", None):
        return InputError(f"{path} cannot be read: {reason(error)}")
    if _is_lacking(error):
        return InputError(
            f"{path} has a column of a type that Arrow {pa.__version__} does not know ({_line(error)}): "
            "write the file again with columns of integers and text"
        )
    return InputError(f"{path} is not a readable Parquet file: {_line(error)}")


def _lacking_column(path: str, groups: Sequence[int], columns: Sequence[str]) -> str | None:
    """The first column that is not damaged but cannot be read, in words."""
    with open_parquet(path) as file:
        for group in groups:
            metadata = file.metadata.row_group(group)
            parts = {part.path_in_schema: part for part in map(metadata.column, range(metadata.num_columns))}
            for name in columns:
                part = parts.get(name)
                error = _first_row_error(file, group, name)
                if error is None:
                    continue
                if part and (set(part.encodings) - _ENCODINGS or not _has_codec(part.compression)):
                    return (
                        f"column {name!r} (type {part.physical_type}, encoding {', '.join(sorted(part.encodings))}, "
                        f"codec {part.compression}: {_line(error)})"
                    )
                if isinstance(error, pa.ArrowNotImplementedError):
                    return f"column {name!r} (type {file.schema_arrow.field(name).type}: {_line(error)})"
    return None


def _first_row_error(file: pq.ParquetFile, group: int, column: str) -> Exception | None:
    try:
        next(file.iter_batches(1, row_groups=[group], columns=[column]), None)
    except PARQUET_ERRORS as error:
        return error
    return None


def _has_codec(name: str) -> bool:
    try:
        return name == "UNCOMPRESSED" or pa.Codec.is_available(name.lower())
    except ValueError:
        return False


def _is_lacking(error: Exception) -> bool:
    return isinstance(error, pa.ArrowNotImplementedError) or bool(_LACKING.search(str(error)))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
