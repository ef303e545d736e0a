"""Files on disks and in object stores, behind one set of functions.

A path is local or an address such as `s3://bucket/key`, a string with `/` in it. TensorFlow's file systems come
before fsspec's, since TensorFlow and the model server read the same addresses; see `docs/object_storage.md` for
what needs which package. What goes wrong is an `OSError`, unless a function says otherwise.

Importing this module loads neither TensorFlow nor fsspec; the first remote path does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import socket
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from mlet_tf.errors import InputError, reason
from mlet_tf.formats import HEAD_BYTES, refused_format, suspected_format

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

_BLOCK_BYTES = 1 << 20


class Entry(NamedTuple):
    """A child of a folder."""

    name: str
    is_folder: bool


def is_remote(path: str | Path) -> bool:
    """Whether a path names its file system, such as `s3://`."""
    return "://" in str(path)


def local_path(path: str | Path) -> Path | None:
    """The path of a local file, `file://` taken away; None for a path on another file system."""
    scheme, separator, rest = str(path).partition("://")
    if not separator:
        return Path(path)
    return Path("/" + rest.strip("/")) if scheme == "file" else None


def absolute(path: str) -> str:
    """Returns the absolute path; one that names its file system is returned unchanged."""
    return path if is_remote(path) else os.path.abspath(path)  # noqa: PTH100 (keeps links, as given)


def without_slash(path: str | Path) -> str:
    """Returns the path without a trailing `/` and, if it is local, without `file://`."""
    local = local_path(path)
    return str(path).rstrip("/") if local is None else str(local)


def tensorflow_opens(path: str | Path) -> bool:
    """Whether TensorFlow has a file system for a path, after adding tensorflow-io's where they are needed."""
    import tensorflow as tf

    scheme = str(path).partition("://")[0]
    if scheme not in tf.io.gfile.get_registered_schemes():
        add_file_systems()
    return scheme in tf.io.gfile.get_registered_schemes()


@functools.cache
def add_file_systems() -> None:
    """Adds TensorFlow's access to `s3://` and the other schemes of tensorflow-io, if that is installed."""
    try:
        import tensorflow_io  # noqa: F401 (its import registers them; once only, and TFT imports it too)
    except ImportError:
        return
    # Threads of the AWS SDK call into it while it is torn down ("pure virtual method called"). Handlers of `exit` run
    # last in, first out: this one leaves with the status that Python has given, before the tear-down.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


def exists(path: str | Path) -> bool:
    """Whether a file or folder is at a path."""
    local = local_path(path)
    return _remote(path).exists(str(path)) if local is None else local.exists()


def is_folder(path: str | Path) -> bool:
    """Whether a folder is at a path."""
    local = local_path(path)
    return _remote(path).isdir(str(path)) if local is None else local.is_dir()


def entries(folder: str | Path) -> list[Entry]:
    """The children of a folder, by name.

    Links are followed; a dangling link counts as a file.
    """
    local = local_path(folder)
    if local is not None:
        with os.scandir(local) as children:
            return sorted(Entry(child.name, Path(child.path).is_dir()) for child in children)
    address = str(folder).rstrip("/")
    found: dict[str, bool] = {}
    for child in _remote(address).ls(address, detail=True):
        path = child["name"].rstrip("/")
        if not address.endswith(path):  # Some object stores list a folder as a child of its own.
            found[path.rsplit("/", 1)[-1]] = child["type"] == "directory"
    return sorted(Entry(*item) for item in found.items())


def names(folder: str | Path) -> list[str]:
    """The names of a folder's children, sorted; empty where there is no such folder."""
    return [entry.name for entry in entries(folder)] if is_folder(folder) else []


def tree(folder: str | Path) -> list[str]:
    """The relative paths of all files below a folder."""
    found: list[str] = []
    for name, has_children in entries(folder):
        found += [f"{name}/{below}" for below in tree(f"{folder}/{name}")] if has_children else [name]
    return found


def file_size(path: str | Path) -> int:
    """Size in bytes, as stored."""
    return file_stamp(path)[0]


def file_stamp(path: str | Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds: a different stamp means different content."""
    local = local_path(path)
    if local is not None:
        stat = local.stat()
        return stat.st_size, stat.st_mtime_ns
    info = _remote(path).info(str(path))
    changed = next((info[key] for key in ("mtime", "LastModified", "updated", "created") if info.get(key)), 0)
    if isinstance(changed, str):  # Any number that changes with the time will do.
        return info["size"], zlib.crc32(changed.encode())
    seconds = changed.timestamp() if hasattr(changed, "timestamp") else changed
    return info["size"], int(seconds * 1e9)


def open_binary(path: str | Path) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        InputError: The file is not there or not readable.
    """
    local = local_path(path)
    try:
        return _remote(path).open(str(path), "rb") if local is None else local.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error


def create_binary(path: str | Path) -> BinaryIO:
    """Opens a file for writing from its start."""
    local = local_path(path)
    return _remote(path).open(str(path), "wb") if local is None else local.open("wb")


def read_text(path: str | Path) -> str:
    """Reads a small text file such as a configuration; a byte order mark of UTF-8 is left out.

    Raises:
        InputError: The file cannot be read or is not UTF-8; the line says what it seems to be.
    """
    with open_binary(path) as file:
        return decode_text(file.read(), path)


def decode_text(data: bytes, what: str | Path) -> str:
    """Text out of UTF-8; a byte order mark is left out.

    Args:
        data: The bytes of a small file.
        what: The file, the start of the message.

    Raises:
        InputError: It is not UTF-8; the line says what it seems to be.
    """
    head = data[:HEAD_BYTES]
    other = refused_format(head)
    try:
        if not other and b"\0" not in data:
            return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        other = (
            f"byte 0x{data[error.start]:02x} in line {line}, as in Latin-1 or Windows-1252: "
            "convert it with `iconv -f LATIN1 -t UTF-8`"
        )
    other = other or suspected_format(head) or "a NUL byte in it"
    raise InputError(f"{what} should be UTF-8 text. Received: {other}")


def make_folder(path: str | Path) -> None:
    """Makes a folder and its parents; no error where it exists."""
    local = local_path(path)
    if local is None:
        _remote(path).makedirs(str(path), exist_ok=True)
    else:
        local.mkdir(parents=True, exist_ok=True)


def remove(path: str | Path) -> None:
    """Removes a file, a link or a whole folder; no error where there is nothing."""
    local = local_path(path)
    if local is None:
        files = _remote(path)
        if files.exists(str(path)):
            files.rm(str(path), recursive=True)
    elif local.is_dir() and not local.is_symlink():
        shutil.rmtree(local)
    else:
        local.unlink(missing_ok=True)


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copies a file, from any file system to any; a local copy is flushed to the disk."""
    with open_binary(source) as reader:
        make_folder(str(target).rpartition("/")[0])
        with create_binary(target) as writer:
            shutil.copyfileobj(reader, writer, _BLOCK_BYTES)
            _flush(writer, target)


def move_file(source: str | Path, target: str | Path) -> None:
    """Moves a file within its file system, over what is at `target`."""
    local = local_path(source)
    if local is None:
        _remote(source).mv(str(source), str(target))
    else:
        local.replace(without_slash(target))


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that is moved to `path` when complete, and removed on failure.

    Example:
        ```python
        with written_aside("runs/demo/report.html") as file:
            file.write(page.encode())
        ```
    """
    local = local_path(path)
    folder, slash, name = str(path).rpartition("/")
    remote = f"{folder}{slash}.{name}.{uuid.uuid4().hex}.unfinished"
    aside: str | Path = remote if local is None else aside_path(local)
    try:
        with create_binary(aside) as file:
            yield file
            _flush(file, path)
        move_file(aside, path)
    except BaseException:
        with contextlib.suppress(Exception):
            remove(aside)
        raise


def aside_path(path: Path) -> Path:
    """A path beside a local file or folder, to be written and then renamed to it.

    What processes of this machine left there when they were killed is removed.
    """
    host = socket.gethostname()
    mine = re.compile(rf"\.unfinished-{re.escape(host)}-([0-9]{{1,9}})-[0-9a-f]{{8}}\.{re.escape(path.name)}")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries_beside:
        for entry in entries_beside:
            if (found := mine.fullmatch(entry.name)) and not _is_running(int(found[1])):
                remove(entry.path)
    return path.with_name(f".unfinished-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{path.name}")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # Another user's.
        return True
    return True


def move_folder(source: str, target: str, order: Callable[[str], bool] | None = None) -> None:
    """Moves a folder: by a rename on a local disk, file by file in an object store.

    Args:
        source: The folder.
        target: Its new path; nothing is there.
        order: Sort key of relative paths: in which order an object store moves the files.
    """
    local = local_path(source)
    if local is not None:
        _flush_folder(local.rename(without_slash(target)).parent)
        return
    for name in sorted(tree(source), key=order):
        make_folder(f"{target}/{name}".rpartition("/")[0])
        move_file(f"{source}/{name}", f"{target}/{name}")
    remove(source)


def flush_folders(folder: str) -> None:
    """Makes the names in a local folder and below survive a power cut."""
    if local_path(folder) is not None:
        for parent, _, _ in os.walk(without_slash(folder)):
            _flush_folder(Path(parent))


def _flush(file: BinaryIO, path: str | Path) -> None:
    if local_path(path) is not None:
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remote(path: str | Path) -> AbstractFileSystem:
    """Returns the file system of an address, with its cache of folders cleared.

    Raises:
        InputError: Neither TensorFlow nor fsspec knows the scheme, or a package is missing.
    """
    address = str(path)
    try:
        import fsspec

        if tensorflow_opens(address):
            from mlet_tf._gfile import GFileSystem

            return GFileSystem()
        files = fsspec.core.url_to_fs(address)[0]
    except (ImportError, ValueError) as error:
        scheme = address.partition("://")[0]
        raise InputError(f"{address}: no file system for `{scheme}://` is installed ({error})") from error
    files.invalidate_cache()
    return files


def join(*parts: str) -> str:
    """Joins the parts of a path or URI."""
    return os.path.join(*parts)  # noqa: PTH118 (pathlib would break URIs)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], errors: type[Exception] | None = None) -> Iterator[None]:
    """Turns a failure to write, such as a full disk, into an `InputError` that names the path.

    Args:
        path: The file or folder.
        errors: What counts as a failure to write; by default what Python and TensorFlow raise.

    Raises:
        InputError: It cannot be written.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, errors or _writing_errors()):
            raise
        raise InputError(f"{path} cannot be written: {reason(error)}") from error


def _writing_errors() -> tuple[type[Exception], ...]:
    tensorflow = sys.modules.get("tensorflow")  # What is not imported raises nothing.
    return (OSError, tensorflow.errors.OpError) if tensorflow else (OSError,)
