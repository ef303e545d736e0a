"""Making a model anew from its configuration, which the collapse and the quantisation have in common."""

import contextlib
import inspect
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import keras
from keras import ops
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES  # No public name takes back a name.
from keras.src.saving.serialization_lib import SafeModeScope  # No public name allows lambdas for one call.


def flatten(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the model and all layers below it; Keras has no public way for it."""
    return model._flatten_layers()


def call(layer: keras.layers.Layer, inputs: Any) -> Any:
    """Calls a model or layer; where its `call` needs several arguments, `inputs` are these, in order or by name."""
    parameters = inspect.signature(layer.call).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(needed) < 2:
        return layer(inputs)
    return layer(**inputs) if isinstance(inputs, Mapping) else layer(*inputs)


def require_built(model: keras.Model) -> None:
    """Raises ValueError where a model has no weights yet."""
    if not model.built:
        raise ValueError(f"`model` should be built. Received: '{model.name}', which has no weights yet")


def remake(
    model: keras.Model, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None, inputs: Any = None
) -> keras.Model:
    """Makes a model anew, with other weights.

    Args:
        model: The model.
        change: Gives the configuration to take instead of the model's own.
        inputs: Inputs to build the new model on, if there are any, as for `call`; else the shapes it was built on do.

    Raises:
        ValueError: The model cannot be made again from its configuration.
    """
    try:
        # The functions come from the model in memory, not from a file.
        with _named_apart(model), SafeModeScope(False):
            config = model.get_config()
            made = type(model).from_config(config if change is None else change(config))
            if not made.built and inputs is None:
                made.build_from_config(model.get_build_config())
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"`model` should be one that can be made again from its `get_config()`. Received: "
            f"'{model.name}' of type {type(model).__name__}, which fails with {error!r}"
        ) from error
    if inputs is not None and not all(layer.built for layer in flatten(made)):
        call(made, inputs)
    return made


@contextlib.contextmanager
def _named_apart(model: keras.Model) -> Iterator[None]:
    """Gives the classes and functions of a model names of their own, by which Keras writes and finds them.

    It finds none of them by itself, except for its own and registered ones. By their usual names it would take
    two of one name for each other, and lambdas, which it writes as code, would come back without their globals.
    """
    layers = flatten(model)
    parts = [part for layer in layers for part in (type(layer), *_definitions(vars(layer)))]
    own = [part for part in parts if part not in GLOBAL_CUSTOM_NAMES and not _is_of_keras(part)]
    names = {part: f"{part.__name__}/{i}" for i, part in enumerate(dict.fromkeys(own))}
    lambdas = [part for part in names if part.__name__ == "<lambda>"]
    # Some configurations are written by hand, with the name of the class.
    found = {part.__name__: part for part in names if isinstance(part, type)}
    found |= {name: part for part, name in names.items()}
    GLOBAL_CUSTOM_NAMES.update(names)
    for part in lambdas:
        part.__name__ = names[part]
    try:
        with keras.saving.custom_object_scope(found):
            yield
    finally:
        for part in names:
            del GLOBAL_CUSTOM_NAMES[part]
        for part in lambdas:
            part.__name__ = "<lambda>"


def _definitions(value: Any) -> Iterator[type | FunctionType]:
    """Yields the classes and functions in a value, and in the lists and dicts within."""
    if isinstance(value, type | FunctionType):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _definitions(item)


def _is_of_keras(part: type | FunctionType) -> bool:
    return str(part.__module__).startswith("keras.")


def require_weights(pairs: Iterable[tuple[keras.layers.Layer, keras.layers.Layer]]) -> None:
    """Raises ValueError where a layer has weights and the one that was made for it has none."""
    for source, target in pairs:
        if not target.built and _own_variables(source):
            raise ValueError(
                f"Layer '{source.name}' should be built from its configuration. Received: a layer without "
                "weights; give the model a `build()` or a `build_from_config()`, or `collapse_model` inputs"
            )


def copy_state(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies what is a layer's own: variables, and assets such as vocabularies."""
    variables = _own_variables(source)
    if keras.backend.backend() == "jax":
        # Assigned as they are, arrays would be those of both layers, and `fit` and `predict` use up what they hold.
        variables = {name: ops.copy(variable) for name, variable in variables.items()}
    try:
        target.load_own_variables(variables)
    except ValueError as error:
        raise ValueError(
            f"Layer '{source.name}' should have the same weights when its model is made again from "
            f"`get_config()`. Received: {error}"
        ) from error
    if hasattr(source, "save_assets") and source.built:
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)


def _own_variables(layer: keras.layers.Layer) -> dict[str, Any]:
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    return store
