"""The uncompressed bytes of compressed text, read forwards as a stream."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any

import pyarrow as pa

from mlet_tf import storage
from mlet_tf.errors import InputError

_SKIP_BYTES = 1 << 20
_READ_BYTES = 1 << 18


class CompressedSource:
    """The uncompressed bytes of a file; damage is an `InputError` that says where.

    Several members (streams, frames) one after the other are read as one. A file that ends inside a member, or has
    something else than a member after one, is damaged.

    Args:
        path: The file.
        codec: `"gzip"`, `"bz2"`, `"xz"`, `"zstd"` or `"lz4"`.
    """

    def __init__(self, path: str, codec: str) -> None:
        self._path, self._codec = path, codec
        self._raw = storage.open_binary(path)
        self._file = _open(self._raw, codec)
        self._position = 0

    def read(self, size: int) -> bytes:
        """Reads up to `size` bytes; fewer only at the end.

        Raises:
            InputError: The file is damaged or can no longer be read.
        """
        try:
            data = self._file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            if getattr(error, "errno", None):
                raise InputError(f"{self._path} cannot be read: {error.strerror}") from error
            raise InputError(
                f"{self._path} is a damaged {self._codec} file: reading failed after {self._position} uncompressed "
                f"bytes, near byte {self._raw.tell()} of {storage.file_size(self._path)} ({error})"
            ) from error
        self._position += len(data)
        return data

    def seek(self, offset: int) -> None:
        """Goes forward to an uncompressed offset."""
        while (left := offset - self._position) > 0:
            if not self.read(min(left, _SKIP_BYTES)):
                return

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._raw.close()


def _open(raw: Any, codec: str) -> Any:
    if codec == "gzip":
        return gzip.GzipFile(fileobj=raw)  # Arrow's takes no zeros after the last member, as tapes have them.
    if codec == "xz":
        return io.BufferedReader(_XzReader(raw), _READ_BYTES)
    return pa.CompressedInputStream(raw, codec)


class _XzReader(io.RawIOBase):
    """Streams of .xz and .lzma; Python's own reader ends without an error where it finds no further stream."""

    def __init__(self, raw: Any) -> None:
        import lzma

        self._raw, self._lzma = raw, lzma
        self._decompressor = lzma.LZMADecompressor()
        self._held = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads into `buffer`; 0 bytes only at the end."""
        while True:
            if self._decompressor.eof:
                self._held = self._decompressor.unused_data.lstrip(b"\0")  # Zeros may stand between streams.
                while not self._held:
                    block = self._raw.read(_READ_BYTES)
                    if not block:
                        return 0
                    self._held = block.lstrip(b"\0")
                self._decompressor = self._lzma.LZMADecompressor()
            if self._decompressor.needs_input and not self._held:
                self._held = self._raw.read(_READ_BYTES)
                if not self._held:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            try:
                data = self._decompressor.decompress(self._held, len(buffer))
            except self._lzma.LZMAError as error:
                raise EOFError(str(error)) from error
            self._held = b""
            if data:
                buffer[: len(data)] = data
                return len(data)
