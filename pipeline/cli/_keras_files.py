"""Keras files that a user names."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from mlet_tf.errors import InputError

if TYPE_CHECKING:
    import keras


def check_keras_file(path: str) -> None:
    """Checks that there is a file, before the imports that loading it takes.

    Raises:
        InputError: There is none.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected a .keras file")


def load_keras_file(path: str) -> keras.Model:
    """Loads a model.

    Raises:
        InputError: It is none, or has layers that cannot be imported.
    """
    import keras

    with contextlib.suppress(ImportError):  # Keras knows a DLRM once it is imported, which needs TFRS.
        importlib.import_module("mlet_tf.models")
    try:
        return keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
