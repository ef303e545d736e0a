"""The uncompressed bytes of compressed text, read forwards as a stream."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Protocol

import pyarrow as pa

from mlet_tf import storage
from mlet_tf.errors import InputError, reason

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SKIP_BYTES = 1 << 20
_READ_BYTES = 1 << 18


class _Readable(Protocol):
    """What the readers of all codecs have in common."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class _Decompressor(Protocol):
    """What `bz2` and `lzma` decompress one stream with."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class CompressedSource:
    """The uncompressed bytes of a file; damage is an `InputError` that names the place.

    Consecutive members (streams, frames) are read as one. A file is damaged if it ends inside a member, or if
    something other than a member follows one.

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
        except (OSError, EOFError, zlib.error, pa.ArrowInvalid) as error:
            raise self._explained(error) from error
        self._position += len(data)
        return data

    def _explained(self, error: Exception) -> InputError:
        if getattr(error, "errno", None):
            return InputError(f"{self._path} cannot be read: {reason(error)}")
        if "too much memory" in str(error):
            return InputError(
                f"{self._path} needs a window that is not read (zstd --long): compress it without"
            )
        return InputError(
            f"{self._path} is a damaged {self._codec} file: reading failed after {self._position} uncompressed "
            f"bytes, near byte {self._raw.tell()} of {storage.file_size(self._path)} ({error})"
        )

    def seek(self, offset: int) -> None:
        """Moves forward to an uncompressed offset."""
        while (left := offset - self._position) > 0:
            if not self.read(min(left, _SKIP_BYTES)):
                return

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._raw.close()


def _open(raw: BinaryIO, codec: str) -> _Readable:
    if codec == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if codec == "bz2":
        return io.BufferedReader(_Members(raw, bz2.BZ2Decompressor, OSError), _READ_BYTES)
    if codec == "xz":
        import lzma  # Some builds of Python lack it.

        return io.BufferedReader(_Members(raw, lzma.LZMADecompressor, lzma.LZMAError), _READ_BYTES)
    return pa.CompressedInputStream(raw, codec)


class _Members(io.RawIOBase):
    """Streams of .bz2, .xz or .lzma, one after the other.

    Python's own readers stop without an error if something else follows a stream, and Arrow's reader of .bz2 fails on
    an empty stream.

    Args:
        raw: The compressed file.
        decompressor: Makes what decompresses one stream.
        damage: What that raises at damage.
    """

    def __init__(
        self, raw: BinaryIO, decompressor: Callable[[], _Decompressor], damage: type[Exception]
    ) -> None:
        self._raw, self._new, self._damage = raw, decompressor, damage
        self._decompressor = decompressor()
        self._held = b""

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Reads into `buffer`; 0 bytes only at the end."""
        view = memoryview(buffer)
        while True:
            if self._decompressor.eof and not self._next_stream():
                return 0
            if self._decompressor.needs_input and not self._held:
                self._held = self._raw.read(_READ_BYTES)
                if not self._held:
                    raise EOFError("it ends within a stream")
            try:
                data = self._decompressor.decompress(self._held, len(view))
            except self._damage as error:
                raise EOFError(str(error)) from error
            self._held = b""
            if data:
                view[: len(data)] = data
                return len(data)

    def _next_stream(self) -> bool:
        """Moves to the next stream, skipping zeros; returns whether there is one."""
        self._held = self._decompressor.unused_data.lstrip(b"\0")
        while not self._held:
            block = self._raw.read(_READ_BYTES)
            if not block:
                return False
            self._held = block.lstrip(b"\0")
        self._decompressor = self._new()
        return True
