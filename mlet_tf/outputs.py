"""Where a user wants results written: checked before any work is done for them."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlet_tf.errors import InputError
from mlet_tf.storage import aside_path, remove, writing


def output_file(path: str, *endings: str, replace: bool = True, make_folder: bool = False) -> Path:
    """Checks that a file can be written.

    Args:
        path: The file.
        *endings: What it may end in, such as `.png`; none for anything.
        replace: Whether the file may exist.
        make_folder: Whether the writer makes the folder that the file is in; otherwise it has to exist.

    Raises:
        InputError: Naming the path and what is wrong with it.
    """
    target = Path(path)
    with writing(path):
        if endings and target.suffix not in endings:
            raise InputError(f"{path}: the output should end in {' or '.join(endings)}")
        if target.exists() and not target.is_file():
            raise InputError(f"{path} cannot be written: it is no regular file")
        if target.exists() and not replace:
            raise InputError(f"{path} exists; --force writes over it")
        if not make_folder and not target.parent.is_dir():
            raise InputError(f"{path} cannot be written: {target.parent} is no folder")
        _try_folder(path, target.parent)
    return target


def output_folder(path: str | Path) -> Path:
    """Checks that a folder can be written, or made where it does not exist.

    Raises:
        InputError: Naming the path and what is wrong with it.
    """
    target = Path(path)
    with writing(path):
        _try_folder(path, target)
    return target


def new_folder(path: str | Path) -> Path:
    """Checks that a folder does not exist and can be made.

    Raises:
        InputError: Naming the path and what is wrong with it.
    """
    target = output_folder(path)
    if target.exists():
        raise InputError(f"{path} exists; give a folder that does not")
    return target


@contextlib.contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """Makes a folder that is renamed to `target` when it is complete, and removed on failure."""
    aside = aside_path(target)
    try:
        with writing(target):
            aside.mkdir(parents=True)
        yield aside
        with writing(target):
            aside.rename(target)
    finally:
        remove(aside)


def _try_folder(path: str | Path, folder: Path) -> None:
    """Writes into a folder or what exists of it: permissions alone tell neither of read-only disks nor of /proc."""
    existing = next(known for known in (folder, *folder.absolute().parents) if known.exists())
    if not existing.is_dir():
        raise InputError(f"{path} cannot be written: {existing} is no folder")
    with tempfile.TemporaryFile(dir=existing):
        pass
