"""TensorFlow's file systems behind fsspec's interface."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from fsspec.spec import AbstractFileSystem

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class GFileSystem(AbstractFileSystem):
    """The file systems of `tf.io.gfile` (`gs://`, `hdfs://`, `ram://`, plug-ins); paths keep their scheme.

    TensorFlow's errors become `OSError`.
    """

    protocol = "gfile"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.rstrip("/")

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[str] | list[dict[str, object]]:
        """Lists a folder, or the one file at `path`; see fsspec."""
        path = self._strip_protocol(path)
        if not self.isdir(path):
            return [self.info(path)] if detail else [path]
        with _os_errors(path):
            listed = tf.io.gfile.listdir(path)
        # Object stores mark a folder by a slash after its name, and may list one twice.
        marked = {name.split("/")[0]: "/" in name for name in listed if name.strip("/")}
        paths = {f"{path}/{name}": folder for name, folder in sorted(marked.items())}
        if not detail:
            return list(paths)
        # A size would take another request for each.
        found: list[dict[str, object]] = [
            {"name": child, "size": None, "type": "directory" if folder or self.isdir(child) else "file"}
            for child, folder in paths.items()
        ]
        return found

    def info(self, path: str, **kwargs: Any) -> dict[str, object]:
        """Name, size, type and modification time of a file or folder; see fsspec."""
        path = self._strip_protocol(path)
        with _os_errors(path):
            if tf.io.gfile.isdir(path):
                return {"name": path, "size": 0, "type": "directory"}
            stat = tf.io.gfile.stat(path)
        return {"name": path, "size": stat.length, "type": "file", "mtime": stat.mtime_nsec / 1e9}

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether anything is there."""
        with _os_errors(path):
            return tf.io.gfile.exists(path)

    def isdir(self, path: str) -> bool:
        """Whether a folder is there."""
        with _os_errors(path):
            return tf.io.gfile.isdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder and its parents."""
        with _os_errors(path):
            tf.io.gfile.makedirs(path)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Moves a file and overwrites the target."""
        with _os_errors(path1):
            tf.io.gfile.rename(path1, path2, overwrite=True)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Removes a file or, if `recursive`, a folder."""
        with _os_errors(path):
            if recursive and tf.io.gfile.isdir(path):
                tf.io.gfile.rmtree(path)
            else:
                tf.io.gfile.remove(path)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BufferedIOBase:
        if mode == "rb":
            file = io.BufferedReader(_RawFile(path, mode))
            file.peek(1)  # TensorFlow opens a file when it is first read.
            return file
        return io.BufferedWriter(_RawFile(path, mode))


class _RawFile(io.RawIOBase):
    """A TensorFlow file behind Python's file interface."""

    def __init__(self, path: str, mode: str) -> None:
        self._path = path
        self._reads = mode == "rb"
        self._file = tf.io.gfile.GFile(path, mode)
        if not self._reads:
            self.write(b"")  # Otherwise an empty file would not be created.

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Reads into `buffer`."""
        view = memoryview(buffer)
        with _os_errors(self._path):
            data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, data: ReadableBuffer) -> int:
        """Writes `data`."""
        content = bytes(data)
        with _os_errors(self._path):
            self._file.write(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position."""
        with _os_errors(self._path):
            base = {io.SEEK_SET: int, io.SEEK_CUR: self._file.tell, io.SEEK_END: self._file.size}[whence]()
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
        """Whether it was opened for reading."""
        return self._reads

    def close(self) -> None:
        """Closes the file; object stores upload it now."""
        if not self.closed:
            try:
                with _os_errors(self._path):
                    self._file.close()
            finally:
                super().close()


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, error.message, path) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message, path) from error
