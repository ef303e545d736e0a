"""Object stores: TensorFlow's access to `s3://` and the other schemes of tensorflow-io.

TensorFlow brings `gs://` itself; see `docs/object_storage.md` for what else needs which package.
"""

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from mlet_tf.errors import InputError


def is_remote(path: str | Path) -> bool:
    """Whether a path names its file system, such as `s3://`."""
    return "://" in str(path)


def absolute(path: str) -> str:
    """The path from the root, or as it is where it names its file system."""
    return path if is_remote(path) else os.path.abspath(path)  # noqa: PTH100 (keeps links, as given)


def tensorflow_opens(path: str | Path) -> bool:
    """Whether TensorFlow has a file system for a path, after adding tensorflow-io's where they are needed."""
    import tensorflow as tf

    scheme = str(path).partition("://")[0]
    if scheme not in tf.io.gfile.get_registered_schemes():
        add_file_systems()
    return scheme in tf.io.gfile.get_registered_schemes()


@functools.cache
def add_file_systems() -> None:
    """Adds the file systems of tensorflow-io, if that is installed."""
    try:
        import tensorflow_io  # noqa: F401 (its import registers them; once only, and TFT imports it too)
    except ImportError:
        return
    # Threads of the AWS SDK call into it while it is torn down ("pure virtual method called"). Handlers of `exit` run
    # last in, first out: this one leaves with the status that Python has given, before the tear-down.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


def join(*parts: str) -> str:
    """Joins the parts of a path or URI."""
    return os.path.join(*parts)  # noqa: PTH118 (pathlib would break URIs)


def remove_folder(folder: str) -> None:
    """Removes a folder; on an object store it is gone already once the last file has been moved away."""
    import tensorflow as tf

    if tf.io.gfile.isdir(folder):
        tf.io.gfile.rmtree(folder)


@contextlib.contextmanager
def writing(
    folder: str | os.PathLike[str], errors: type[Exception] | tuple[type[Exception], ...] | None = None
) -> Iterator[None]:
    """Turns what goes wrong while files are written, such as a full disk, into one message.

    Args:
        folder: The folder that the message names.
        errors: What is taken for a failure to write; by default what Python and TensorFlow raise for one.

    Raises:
        InputError: The files cannot be written.
    """
    import tensorflow as tf

    failures = errors or (OSError, tf.errors.OpError)
    try:
        yield
    except failures as error:
        raise InputError(f"{folder} cannot be written: {getattr(error, 'message', error)}") from error
