"""Finding and opening the files of a click log, local or remote."""

from __future__ import annotations

import glob
import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from mlet_tf.errors import InputError
from mlet_tf.storage import is_remote, tensorflow_opens

_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"


def list_files(data: str) -> list[str]:
    """Lists the files that a user's path stands for.

    Args:
        data: A file, a pattern with `*`, `?` or `[...]`, or a folder. Of a folder all files count, those in
            folders inside it and those named `.*`, `_*` or `*.json` excepted.

    Returns:
        Sorted paths, at least one.

    Raises:
        InputError: Nothing is there.
    """
    data = str(data)
    if is_remote(data):
        found = _list_remote(data)
    elif Path(data).is_dir():
        found = [str(path) for path in Path(data).iterdir() if path.is_file()]
    elif Path(data).exists():
        return [data]
    else:
        found = [path for path in glob.glob(data) if Path(path).is_file()]  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = sorted(path for path in found if _is_data(path))
    if not files:
        raise InputError(f"No file found at {data!r}: expected a file, a pattern or a folder of log files")
    return files


def file_kind(path: str) -> str:
    """Returns `"parquet"`, `"gzip"` or `"text"`, by the ending or else by the first bytes.

    Raises:
        InputError: The file cannot be read or is empty.
    """
    with open_binary(path) as file:
        magic = file.read(4)
    if not magic:
        raise InputError(f"{path} is empty (0 bytes): expected rows of a click log")
    if path.endswith(".parquet") or magic == _PARQUET_MAGIC:
        return "parquet"
    return "gzip" if path.endswith(".gz") or magic.startswith(_GZIP_MAGIC) else "text"


def file_size(path: str) -> int:
    """Size in bytes, as stored."""
    return file_stamp(path)[0]


def file_stamp(path: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds: another stamp means another content."""
    if is_remote(path) and not tensorflow_opens(path):
        info = _fsspec(path).info(path)
        changed = info.get("LastModified") or info.get("updated") or info.get("mtime") or 0
        return info["size"], int(changed.timestamp() * 1e9) if hasattr(changed, "timestamp") else int(
            float(changed)
        )
    if is_remote(path):
        import tensorflow as tf

        stat = tf.io.gfile.stat(path)
        return stat.length, stat.mtime_nsec
    local = Path(path).stat()  # TensorFlow's knows local times to the second only.
    return local.st_size, local.st_mtime_ns


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file for reading.

    Raises:
        InputError: The file is not there or not readable.
    """
    try:
        if is_remote(path) and not tensorflow_opens(path):
            return _fsspec(path).open(path, "rb")
        if is_remote(path):
            file: Any = io.BufferedReader(_RemoteFile(path))
            file.peek(1)
            return file
        return Path(path).open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def create_binary(path: str) -> BinaryIO:
    """Opens a local file, or a remote one of TensorFlow's file systems, for writing from its start."""
    if not is_remote(path):
        return Path(path).open("wb")
    file: Any = io.BufferedWriter(_RemoteFile(path, "wb"))
    return file


class GzipSource:
    """The uncompressed bytes of a gzip file, read forwards; damage is an `InputError` that says where."""

    def __init__(self, path: str) -> None:
        """Opens the file."""
        self._path = path
        self._raw = open_binary(path)
        self._file = gzip.GzipFile(fileobj=self._raw)

    def read(self, size: int) -> bytes:
        """Reads up to `size` bytes; fewer only at the end."""
        try:
            return self._file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{self._path} is a damaged gzip file: reading failed after {self._file.tell()} uncompressed "
                f"bytes, near byte {self._raw.tell()} of {file_size(self._path)} ({error})"
            ) from error

    def seek(self, offset: int) -> None:
        """Goes forward to an uncompressed offset."""
        while (left := offset - self._file.tell()) > 0:
            if not self.read(min(left, 1 << 20)):
                return

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._raw.close()


class _RemoteFile(io.RawIOBase):
    """A TensorFlow file behind Python's file interface."""

    def __init__(self, path: str, mode: str = "rb") -> None:
        import tensorflow as tf

        self._path = path
        self._errors = tf.errors.OpError
        self._reads = mode == "rb"
        self._file = tf.io.gfile.GFile(path, mode)

    def readinto(self, buffer: Any) -> int:
        """Reads into `buffer`."""
        try:
            data = self._file.read(len(buffer))
        except self._errors as error:
            raise OSError(str(error.message)) from error
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        """Writes `data`."""
        try:
            self._file.write(bytes(data))
        except self._errors as error:
            raise OSError(str(error.message)) from error
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._file.size()}[whence]
        self._file.seek(base + offset)
        return base + offset

    def tell(self) -> int:
        """The position."""
        return self._file.tell()

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self._reads

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return not self._reads

    def seekable(self) -> bool:
        """As a file for reading is."""
        return self._reads

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def _fsspec(path: str) -> Any:
    """What fsspec has for a path that TensorFlow cannot open.

    Raises:
        InputError: Nothing, or a package is missing.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(path)[0]
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{path}: no file system for `{path.partition('://')[0]}://` is installed ({error})"
        ) from error


def _list_remote(data: str) -> list[str]:
    if not tensorflow_opens(data):
        files = _fsspec(data)
        found = files.ls(data, detail=False) if files.isdir(data) else files.glob(data)
        return [files.unstrip_protocol(path) for path in found if not files.isdir(path)]
    import tensorflow as tf

    if tf.io.gfile.isdir(data):
        found = [f"{data.rstrip('/')}/{name}" for name in tf.io.gfile.listdir(data)]
    else:
        found = tf.io.gfile.glob(data)
    return [path for path in found if not tf.io.gfile.isdir(path)]


def _is_data(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return not name.startswith((".", "_")) and not name.endswith(".json")
