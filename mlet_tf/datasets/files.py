"""Finding the files of a click log, local or remote; a file that cannot be used is an error that names it."""

from __future__ import annotations

import fnmatch
import functools
import logging
import os
import re
import stat
from collections.abc import Iterator

from mlet_tf import storage
from mlet_tf.errors import InputError, reason
from mlet_tf.formats import HEAD_BYTES, codec_of, is_parquet, refused_format

_WILDCARD = re.compile(r"[*?\[]")
_ENDINGS = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "xz",
    ".lzma": "xz",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".lz4": "lz4",
}
_SHOWN = 5

_log = logging.getLogger(__name__)


def list_files(data: str) -> list[str]:
    """Lists the files that a user's path stands for.

    Args:
        data: A file, a folder or a pattern. `*`, `?` and `[...]` match within a name, `**` any number of folders.
            A folder, also one that a pattern matches, stands for all files in it, at any depth. As in Spark, Hadoop
            and Beam, names that begin with `.` or `_` are left out, and so are `*.json`, unless the pattern asks for
            them; a warning says so once.

    Returns:
        Sorted paths, at least one.

    Raises:
        InputError: There is no file, a folder cannot be read, a link is dangling or circular, two links lead to one
            file, or something is neither a file nor a folder.
    """
    data = str(data)
    if not data:  # Such as a variable of the shell that is not set.
        raise InputError("The path of a log should be a file, a pattern or a folder. Received: an empty text")
    try:
        found = _Search().find(data)
    except OSError as error:
        raise InputError(f"{error.filename or data} cannot be read: {reason(error)}") from error
    if not found:
        raise InputError(f"No file found at {data!r}: expected a file, a pattern or a folder of log files")
    return found


def file_kind(path: str) -> str:
    """Recognises the format of a file by its first bytes.

    Returns:
        `"parquet"`, `"text"`, or for compressed text `"gzip"`, `"bz2"`, `"xz"`, `"zstd"` or `"lz4"`.

    Raises:
        InputError: The file cannot be read, is empty, or has an unsupported format.
    """
    with storage.open_binary(path) as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise InputError(f"{path} is empty (0 bytes): expected rows of a click log")
    if is_parquet(head):
        return "parquet"
    if codec := codec_of(head):
        return codec
    if refused := refused_format(head):
        raise InputError(f"{path} is {refused}")
    # The name promises something other than text: reading it as that explains what is wrong.
    ending = os.path.splitext(path)[1]  # noqa: PTH122 (may be remote)
    return "parquet" if ending == ".parquet" else _ENDINGS.get(ending, "text")


def plain_name(path: str) -> str:
    """The name of a file without its folder and the suffix of a compression."""
    name, ending = os.path.splitext(path.rsplit("/", 1)[-1])  # noqa: PTH122 (may be remote)
    return name if ending in _ENDINGS else name + ending


class _Search:
    """One search for files; remembers the folders it listed and the files it left out."""

    def __init__(self) -> None:
        self._listed: dict[str, list[storage.Entry]] = {}
        self._left_out: dict[str, None] = {}

    def find(self, data: str) -> list[str]:
        path = data.rstrip("/") or "/"
        if storage.exists(path) or not _WILDCARD.search(path):
            found = list(self._at(path, storage.is_folder(path)))
        else:
            parts = path.split("/")
            first = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
            root = "/".join(parts[:first]) + ("/" if parts[:first] == [""] else "")
            found = list(self._matching(root, parts[first:]))
        found = sorted(set(found))
        _refuse_twice(found)
        if self._left_out:
            _say_left_out(data, tuple(self._left_out))
        return found

    def _at(self, path: str, is_folder: bool) -> Iterator[str]:
        """The file at a path, or all files below a folder."""
        if is_folder:
            yield from self._below(path)
        elif storage.exists(path) or _is_link(path):
            yield _regular(path)

    def _below(self, folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
        """All files in a folder and the folders inside it."""
        above = (*above, _real(folder))
        for path, is_folder in self._children(folder):
            if is_folder:
                _refuse_circle(path, above)
                yield from self._below(path, above)
            else:
                yield _regular(path)

    def _matching(self, folder: str, parts: list[str], above: tuple[str, ...] = ()) -> Iterator[str]:
        """The files that match a pattern, given by its parts, in a folder."""
        part, rest = parts[0], parts[1:]
        if part == "**" and rest:
            yield from self._matching(folder, rest)
            above = (*above, _real(folder))
            for path in self._folders(folder):
                _refuse_circle(path, above)
                yield from self._matching(path, parts, above)
        elif rest:
            for path in self._folders(folder, part):
                yield from self._matching(path, rest)
        elif _WILDCARD.search(part):
            for path, is_folder in self._children(folder, part):
                yield from self._below(path) if is_folder else [_regular(path)]
        else:
            path = _join(folder, part)
            yield from self._at(path, storage.is_folder(path))

    def _folders(self, folder: str, part: str = "*") -> Iterator[str]:
        """The folders in a folder that match one part of a pattern."""
        if not _WILDCARD.search(part):
            path = _join(folder, part)
            if storage.is_folder(path):
                yield path
            return
        for path, is_folder in self._children(folder, part, only_folders=True):
            if is_folder:
                yield path
            elif _is_link(path):
                _regular(path)  # A dangling link may have been a folder.

    def _children(
        self, folder: str, pattern: str = "*", *, only_folders: bool = False
    ) -> Iterator[tuple[str, bool]]:
        """Paths of the children that match a pattern, and whether each is a folder; notes the ones left out."""
        if folder not in self._listed:
            try:
                self._listed[folder] = storage.entries(folder or ".")
            except (FileNotFoundError, NotADirectoryError):  # The part of a pattern before its wildcards.
                self._listed[folder] = []
        for child in self._listed[folder]:
            if not fnmatch.fnmatchcase(child.name, pattern):
                continue
            if _is_data(child, pattern):
                yield _join(folder, child.name), child.is_folder
            elif child.is_folder or not only_folders:
                self._left_out[_join(folder, child.name)] = None


def _is_data(entry: storage.Entry, pattern: str) -> bool:
    if entry.name.startswith((".", "_")):
        return entry.name[0] == pattern[0]
    return entry.is_folder or not entry.name.endswith(".json") or pattern.endswith(".json")


def _is_link(path: str) -> bool:
    local = storage.local_path(path)
    return local is not None and local.is_symlink()


def _regular(path: str) -> str:
    """The path, if it is a file."""
    local = storage.local_path(path)
    if local is None:
        return path
    try:
        mode = local.stat().st_mode
    except OSError as error:
        link = f", a link to {local.readlink()}," if local.is_symlink() else ""
        raise InputError(f"{path}{link} cannot be read: {reason(error)}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} should be a file or a folder. Received: a device, pipe or socket")
    return path


def _refuse_circle(folder: str, above: tuple[str, ...]) -> None:
    if _real(folder) in above:
        raise InputError(f"{folder} is a link to a folder that it is in: its files have no end")


def _refuse_twice(files: list[str]) -> None:
    """Raises if two of the paths are the same file."""
    seen: dict[str, str] = {}
    for path in files:
        other = seen.setdefault(_real(path), path)
        if other != path:
            raise InputError(f"{path} and {other} are the same file by a link: its rows would be read twice")


def _real(path: str) -> str:
    local = storage.local_path(path)
    return path if local is None else os.path.realpath(local)


def _join(folder: str, name: str) -> str:
    return f"{folder}{name}" if folder.endswith("/") or not folder else f"{folder}/{name}"


@functools.cache  # Once: a run lists its files several times.
def _say_left_out(data: str, paths: tuple[str, ...]) -> None:
    shown = ", ".join(paths[:_SHOWN]) + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
    _log.warning("%s: not read: %s (names that begin with . or _, and *.json)", data, shown)
