"""Registers this package's layers and optimizers with Keras as soon as Keras is imported.

`keras.models.load_model` must know them after `import mlet_tf`. Importing Keras there would take seconds, too long
for a command that only prints its help or queries a server.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

# If one of these is the first to import Keras, the other must not need all of it: no import of names from the
# package `mlet_tf.layers` in `mlet_tf.optimizers`, nor the other way round.
_MODULES = ("mlet_tf.layers", "mlet_tf.optimizers")
# This one needs all of its package: where a module of the package is the first to import Keras, it comes afterwards.
_SERVED = "mlet_tf.embeddings.served"


def register_with_keras() -> None:
    """Registers now if Keras or TensorFlow is already imported, otherwise right after the import of Keras."""
    if not sys.modules.keys().isdisjoint({"keras", "tensorflow"}):
        _register()
    else:
        sys.meta_path.insert(0, _KerasFinder())


def _register() -> None:
    _require_keras_3()
    for module in _MODULES:
        importlib.import_module(module)
    if not any(map(_is_being_imported, list(sys.modules))):
        importlib.import_module(_SERVED)


def _is_being_imported(name: str) -> bool:
    """Whether this is a module of the package of served embeddings that is not yet whole."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return name.startswith("mlet_tf.embeddings.") and getattr(spec, "_initializing", False)


def _require_keras_3() -> None:
    """Raises where `tf.keras` is not Keras 3: layers of two Keras versions mix without an error, untrained."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    version = getattr(tf.keras, "__version__", "2")  # tf_keras has no version.
    if not version.startswith("3"):
        raise ImportError(
            f"mlet_tf needs tf.keras to be Keras 3. Received: Keras {version}. Import mlet_tf before "
            "tensorflow, or set the environment variable TF_USE_LEGACY_KERAS=0."
        )


class _KerasFinder(importlib.abc.MetaPathFinder):
    """Finds `keras` through the other finders, and wraps its loader.

    It stays until Keras is loaded: some packages check for Keras long before they import it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "keras":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """Loads Keras, then registers."""

    def __init__(self, loader: importlib.abc.Loader, finder: _KerasFinder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader  # As if this loader had not been there.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path.remove(self._finder)
        _register()
