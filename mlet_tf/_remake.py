"""Making a model anew from its configuration, which the collapse and the quantisation have in common."""

import tempfile
from collections.abc import Mapping
from typing import Any

import keras
from keras.src.saving.serialization_lib import SafeModeScope  # No public name allows lambdas for one call.


def flatten(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the model and all layers below it; Keras has no public way for it."""
    return model._flatten_layers()


def require_built(model: keras.Model) -> None:
    """Raises ValueError where a model has no weights yet."""
    if not model.built:
        raise ValueError(f"`model` should be built. Received: '{model.name}', which has no weights yet")


def remake(model: keras.Model, config: Mapping[str, Any] | None = None) -> keras.Model:
    """Makes a model anew, built but with other weights.

    Args:
        model: The model.
        config: The configuration to take instead of the model's own.

    Raises:
        ValueError: The model cannot be made again from its configuration.
    """
    classes = {type(layer).__name__: type(layer) for layer in flatten(model)}
    try:
        # The lambdas come from the model in memory, not from a file.
        with keras.saving.custom_object_scope(classes), SafeModeScope(False):
            made = type(model).from_config(model.get_config() if config is None else config)
            if not made.built:
                made.build_from_config(model.get_build_config())
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"`model` should be one that can be made again from its `get_config()`. Received: "
            f"'{model.name}' of type {type(model).__name__}, which fails with {error!r}"
        ) from error
    return made


def copy_state(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies what is a layer's own: variables, and assets such as vocabularies."""
    store: dict[str, Any] = {}
    source.save_own_variables(store)
    if store and not target.built:
        raise ValueError(
            f"Layer '{source.name}' should be built from its configuration. Received: a layer without weights; "
            "give the model a `build()` or a `build_from_config()`"
        )
    try:
        target.load_own_variables(store)
    except ValueError as error:
        raise ValueError(
            f"Layer '{source.name}' should have the same weights when its model is made again from "
            f"`get_config()`. Received: {error}"
        ) from error
    if hasattr(source, "save_assets") and source.built:
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)
