"""One small interface to the places a model can be pushed to: local folders, `tf.io.gfile` and fsspec."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO, Protocol

from mlet_tf.errors import InputError
from mlet_tf.storage import tensorflow_opens


class Files(Protocol):
    """What pushing needs of a file system. Paths are strings, joined with `/`."""

    def names(self, folder: str) -> list[str]:
        """Names of the direct children of `folder`; empty where it does not exist."""

    def is_folder(self, path: str) -> bool:
        """Whether `path` is a folder."""

    def exists(self, path: str) -> bool:
        """Whether anything is at `path`."""

    def make_folder(self, path: str) -> None:
        """Makes `path` and its parents; no error where it exists."""

    def read(self, path: str) -> BinaryIO:
        """Opens a file for reading bytes."""

    def write(self, path: str) -> BinaryIO:
        """Opens a file for writing bytes."""

    def move_file(self, source: str, target: str) -> None:
        """Moves one file, over what is at `target`."""

    def remove(self, path: str) -> None:
        """Removes a file or a whole folder."""

    def stamp(self, path: str) -> tuple:
        """What changes when a file's content does, as far as this can be told cheaply."""


class LocalFiles:
    """Local folders. The one kind whose folders can be renamed atomically and flushed to disk."""

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        path = Path(folder)
        return sorted(child.name for child in path.iterdir()) if path.is_dir() else []

    def is_folder(self, path: str) -> bool:
        """See `Files`."""
        return Path(path).is_dir()

    def exists(self, path: str) -> bool:
        """See `Files`."""
        return Path(path).exists()

    def make_folder(self, path: str) -> None:
        """See `Files`."""
        Path(path).mkdir(parents=True, exist_ok=True)

    def read(self, path: str) -> BinaryIO:
        """See `Files`."""
        return Path(path).open("rb")

    def write(self, path: str) -> BinaryIO:
        """See `Files`."""
        return Path(path).open("wb")

    def move_file(self, source: str, target: str) -> None:
        """See `Files`."""
        Path(source).replace(target)

    def remove(self, path: str) -> None:
        """See `Files`."""
        if Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)

    def stamp(self, path: str) -> tuple:
        """See `Files`."""
        status = Path(path).stat()
        return status.st_size, status.st_mtime_ns

    @staticmethod
    def flush_folder(path: str) -> None:
        """Makes the folder's list of names survive a power cut."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class GFiles:
    """Whatever TensorFlow has a file system for: `gs://`, `hdfs://`, `ram://` and plug-ins."""

    def __init__(self) -> None:
        """Imports TensorFlow, which the other kinds do without."""
        import tensorflow as tf

        self._gfile = tf.io.gfile

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        if not self._gfile.isdir(folder):
            return []
        return sorted({name.strip("/").split("/")[0] for name in self._gfile.listdir(folder)})

    def is_folder(self, path: str) -> bool:
        """See `Files`."""
        return self._gfile.isdir(path)

    def exists(self, path: str) -> bool:
        """See `Files`."""
        return self._gfile.exists(path)

    def make_folder(self, path: str) -> None:
        """See `Files`."""
        self._gfile.makedirs(path)

    def read(self, path: str) -> BinaryIO:
        """See `Files`."""
        return self._gfile.GFile(path, "rb")

    def write(self, path: str) -> BinaryIO:
        """See `Files`."""
        return self._gfile.GFile(path, "wb")

    def move_file(self, source: str, target: str) -> None:
        """See `Files`."""
        self._gfile.rename(source, target, overwrite=True)

    def remove(self, path: str) -> None:
        """See `Files`."""
        if self._gfile.isdir(path):
            self._gfile.rmtree(path)
        elif self._gfile.exists(path):
            self._gfile.remove(path)

    def stamp(self, path: str) -> tuple:
        """See `Files`."""
        status = self._gfile.stat(path)
        return status.length, status.mtime_nsec


class FsspecFiles:
    """Whatever fsspec has an implementation of: `s3://`, `abfs://`, `memory://` and many more."""

    def __init__(self, url: str) -> None:
        """Finds the implementation for the address `url`."""
        import fsspec

        self._fs, _ = fsspec.core.url_to_fs(url)

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        self._fs.invalidate_cache()
        if not self._fs.isdir(folder):
            return []
        return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(folder, detail=False)})

    def is_folder(self, path: str) -> bool:
        """See `Files`."""
        return self._fs.isdir(path)

    def exists(self, path: str) -> bool:
        """See `Files`."""
        return self._fs.exists(path)

    def make_folder(self, path: str) -> None:
        """See `Files`."""
        self._fs.makedirs(path, exist_ok=True)

    def read(self, path: str) -> BinaryIO:
        """See `Files`."""
        return self._fs.open(path, "rb")

    def write(self, path: str) -> BinaryIO:
        """See `Files`."""
        return self._fs.open(path, "wb")

    def move_file(self, source: str, target: str) -> None:
        """See `Files`."""
        self._fs.mv(source, target)

    def remove(self, path: str) -> None:
        """See `Files`."""
        if self._fs.exists(path):
            self._fs.rm(path, recursive=True)

    def stamp(self, path: str) -> tuple:
        """See `Files`."""
        return (self._fs.size(path),)


def files_of(path: str) -> tuple[Files, str]:
    """The file system that `path` lives on, and the path as that file system wants it.

    TensorFlow's own file systems come before fsspec's, since the server will read through them.

    Raises:
        InputError: if neither TensorFlow nor fsspec knows the scheme, or its package is missing.
    """
    scheme, separator, rest = path.partition("://")
    if not separator:
        return LocalFiles(), path.rstrip("/") or "/"
    if scheme == "file":
        return LocalFiles(), "/" + rest.strip("/")
    if tensorflow_opens(path):
        return GFiles(), path.rstrip("/")
    try:
        return FsspecFiles(path), path.rstrip("/")
    except (ImportError, ValueError) as error:
        raise InputError(f"{path}: no file system for `{scheme}://` is installed ({error})") from error


def tree(files: Files, folder: str) -> list[str]:
    """Relative paths of all files below `folder`, parents before children."""
    found = []
    for name in files.names(folder):
        path = f"{folder}/{name}"
        if files.is_folder(path):
            found += [f"{name}/{below}" for below in tree(files, path)]
        else:
            found.append(name)
    return found
