"""Pushing a SavedModel to the folder of a model server, so that no server ever loads half of it.

A model server takes every child of the base path whose name is an integer for a version, and the largest for
the one to serve. It looks every second and does not wait for a copy to end: a `saved_model.pb` that arrives before
its variables is loaded, replaces the good version, and then answers every request with an error.

On local folders the version is copied under a name that is not a number, flushed to disk, and renamed:
it appears whole or not at all, even if the push is killed. Object stores cannot rename a folder. There the files are
copied under such a name too, then moved one by one, `saved_model.pb` last; a version is removed with that file first.
A server that looks meanwhile cannot load the version, and never loads half of one. So a folder without that file does
not count as a version to keep or to return to, but its number is taken.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlet_tf import storage
from mlet_tf.errors import InputError
from mlet_tf.serving.warmup import WARMUP_FILE, write_warmup

MODEL_FILE = "saved_model.pb"
_LARGEST = 2**63 - 1
_VERSION = re.compile(r"\s*[+-]?[0-9]+\s*")
_UNFINISHED = re.compile(r"mlet-(?:push|remove)-(?P<version>[0-9]+)-(?P<time>[0-9]+)-[0-9a-f]+")
_ROLLED_BACK = re.compile(r"rolled-back-(?P<version>[0-9]+)")
# Without a lock, an attempt of this age counts as dead.
_STALE_SECONDS = 3600


def version_number(name: str) -> int | None:
    """The version that a model server reads from a folder's name (`00000005` is 5); None if there is none."""
    if not _VERSION.fullmatch(name):
        return None
    number = int(name)
    return number if -_LARGEST - 1 <= number <= _LARGEST else None


def list_versions(base_path: str | Path) -> dict[int, str]:
    """The versions under `base_path`, smallest first, and their paths, as a model server sees them.

    A server looks at names only, so this includes folders that cannot be loaded.
    """
    return _versions(storage.without_slash(base_path))


def push(
    saved_model_dir: str | Path,
    base_path: str | Path,
    *,
    keep: int = 3,
    version: int | None = None,
    warmup: Sequence[bytes] = (),
) -> str:
    """Copies a SavedModel to `base_path/<version>`, whole or not at all.

    It first removes what killed pushes left and, once the new version is in place, versions beyond the `keep` newest
    and folders left by `rollback`. On local folders pushes to one base path wait
    for each other; to an object store, push from one place at a time.

    Args:
        saved_model_dir: the SavedModel to push; it is not changed.
        base_path: the folder that the model server watches: local, or a `tf.io.gfile` or fsspec address.
        keep: how many whole versions to keep, including the new one. With 1 there is nothing to roll back to.
        version: the version's number. It must be larger than any used before; left out, it is the next one.
        warmup: serialised tf.Examples to put into the new version as warm-up requests, see `write_warmup`;
            by default those of the SavedModel.

    Returns:
        The path of the new version.

    Raises:
        InputError: if there is no SavedModel, the version is not the largest, the place cannot be written,
            the disk is full, or the model takes no examples to warm up with. Nothing is left behind in
            these cases.
    """
    source, base = storage.without_slash(saved_model_dir), storage.without_slash(base_path)
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise InputError(f"keep: expected an integer of at least 1, received {keep!r}")
    sources = {name: f"{source}/{name}" for name in _saved_model_files(source)}
    _refuse_nesting(source, base)

    with (
        _explained(f"pushing {source} to {base}", base),
        tempfile.TemporaryDirectory() as scratch,
        _only_pusher(base) as locked,
    ):
        if warmup:
            sources[WARMUP_FILE] = f"{scratch}/requests"
            write_warmup(source, warmup, output=f"{scratch}/requests")
        _clear_unfinished(base, locked)
        number = _next_version(base, version)
        final = f"{base}/{number}"
        staging = f"{base}/{_unfinished_name('push', number)}"
        try:
            for name, path in sources.items():
                storage.copy_file(path, f"{staging}/{name}")
            storage.flush_folders(staging)
            _move_folder(staging, final, model_file_first=False)
        except BaseException:
            _discard(staging, final)
            raise
        for old, path in list(_whole_versions(base).items())[:-keep]:
            doomed = f"{base}/{_unfinished_name('remove', old)}"
            _move_folder(path, doomed, model_file_first=True)
            storage.remove(doomed)
        for name in storage.names(base):
            if _ROLLED_BACK.fullmatch(name):
                storage.remove(f"{base}/{name}")
    return final


def rollback(base_path: str | Path) -> str:
    """Takes the newest whole version out of service, so that servers return to the whole one before it.

    The version is set aside as `rolled-back-<version>` until the next push, and its number is not used again.
    Folders without a `saved_model.pb` that are newer than the version to return to are set aside too: a server would
    wait for them in vain.

    Args:
        base_path: the folder that the model server watches.

    Returns:
        The path of the version that servers return to.

    Raises:
        InputError: if there is no earlier version.
    """
    base = storage.without_slash(base_path)
    with _explained(f"rolling back {base}", base), _only_pusher(base, create=False) as locked:
        _clear_unfinished(base, locked)
        versions, whole = _versions(base), list(_whole_versions(base))
        if len(whole) < 2:
            held = ", ".join(map(str, whole)) or "none"
            raise InputError(
                f"{base}: expected at least two versions with a {MODEL_FILE} to roll back, found {held}"
            )
        *_, earlier, newest = whole
        # The newest last: servers keep it until then.
        for number in sorted((n for n in versions if n > earlier), key=lambda n: n == newest):
            aside = f"{base}/rolled-back-{number}"
            storage.remove(aside)
            _move_folder(versions[number], aside, model_file_first=True)
    return versions[earlier]


def _versions(base: str) -> dict[int, str]:
    numbered = {version_number(name): f"{base}/{name}" for name in storage.names(base)}
    return {number: numbered[number] for number in sorted(n for n in numbered if n is not None)}


def _whole_versions(base: str) -> dict[int, str]:
    return {number: path for number, path in _versions(base).items() if _is_whole(path)}


def _is_whole(path: str) -> bool:
    """Whether a version can be loaded: its model file comes last and goes first."""
    return storage.exists(f"{path}/{MODEL_FILE}")


def _saved_model_files(source: str) -> list[str]:
    """The files to copy."""
    if not storage.is_folder(source):
        raise InputError(f"{source}: expected the folder of a SavedModel, found no such folder")
    names = storage.tree(source)
    if MODEL_FILE not in names:
        raise InputError(f"{source}: expected a SavedModel, found no {MODEL_FILE} in it")
    return names


def _refuse_nesting(source: str, base: str) -> None:
    source_path, base_path = Path(source).absolute(), Path(base).absolute()
    if source_path == base_path or source_path in base_path.parents:
        raise InputError(f"{base}: expected a base path outside the SavedModel {source}")


def _next_version(base: str, asked: int | None) -> int:
    used = list(_versions(base))
    used += [int(match["version"]) for name in storage.names(base) if (match := _ROLLED_BACK.fullmatch(name))]
    newest = max([0, *used])
    if asked is None:
        return newest + 1
    if isinstance(asked, bool) or not isinstance(asked, int) or not newest < asked <= _LARGEST:
        raise InputError(
            f"version: expected an integer above {newest}, the largest {base} has had, received {asked!r}"
        )
    return asked


def _unfinished_name(kind: str, number: int) -> str:
    return f"mlet-{kind}-{max(number, 0)}-{int(time.time())}-{uuid.uuid4().hex}"


def _move_folder(source: str, target: str, *, model_file_first: bool) -> None:
    """Moves a version so that a server never loads half of it."""
    storage.move_folder(source, target, lambda name: (name == MODEL_FILE) != model_file_first)


def _discard(staging: str, final: str) -> None:
    """Removes an attempt, unless it has its `saved_model.pb` and is whole."""
    with contextlib.suppress(Exception):
        if storage.local_path(final) is None and not _is_whole(final):
            storage.remove(final)
        storage.remove(staging)


def _clear_unfinished(base: str, locked: bool) -> None:
    """Removes what killed pushes and removals left, and ends killed rollbacks."""
    half = {n: path for n, path in _versions(base).items() if not _is_whole(path)}
    if storage.local_path(base) is not None:
        half = {}  # Local versions appear and vanish in one step: such a folder is somebody else's.
    for name in storage.names(base):
        if match := _UNFINISHED.fullmatch(name):
            if locked or time.time() - int(match["time"]) > _STALE_SECONDS:
                if path := half.pop(int(match["version"]), None):
                    storage.remove(path)
                storage.remove(f"{base}/{name}")
        elif (match := _ROLLED_BACK.fullmatch(name)) and (path := half.pop(int(match["version"]), None)):
            _move_folder(path, f"{base}/{name}", model_file_first=True)


@contextlib.contextmanager
def _only_pusher(base: str, *, create: bool = True) -> Iterator[bool]:
    """Holds the base path's lock, which dies with the process; yields whether there is one."""
    if create:
        storage.make_folder(base)
    if storage.local_path(base) is None or not storage.is_folder(base):
        yield False
        return
    handle = os.open(base, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        except OSError:  # Some network file systems cannot lock.
            locked = False
        yield locked
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explained(doing: str, base: str) -> Iterator[None]:
    """Turns an error of the operating system into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(base).free if Path(base).is_dir() else 0
            reason = f"the disk is full ({free / 2**20:.0f} MiB free)"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "permission denied"
        else:
            reason = error.strerror or str(error)
        where = f" at {error.filename}" if error.filename else ""
        raise InputError(f"{doing}: {reason}{where}") from error
    except Exception as error:
        # TensorFlow's errors on writing warm-up requests are not OSErrors; naming their class would import TensorFlow.
        if not hasattr(error, "error_code"):
            raise
        raise InputError(f"{doing}: {error}") from error
