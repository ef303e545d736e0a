"""Replacing layers of a model and keeping the weights of the others."""

import contextlib
import functools
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType

import keras
from keras import ops
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES  # No public way to remove a name.
from keras.src.saving.serialization_lib import (  # No public way to allow lambdas, or share objects, for one call.
    ObjectSharingScope,
    SafeModeScope,
    record_object_after_deserialization,
    record_object_after_serialization,
)

from mlet_tf.types import Inputs, Tensor

Rule = Callable[[keras.layers.Layer], keras.layers.Layer | None]


def replace_layers(model: keras.Model, rule: Rule, inputs: Inputs | None = None) -> keras.Model:
    """Returns a new model with some layers replaced; the given model is not changed.

    Layers are replaced wherever they are: in functional, Sequential, nested and subclassed models, in wrappers and
    other layers, shared or not, whether the configuration holds them or a constructor makes them. All other layers
    are rebuilt from their configurations and keep their weights. The result is not compiled.

    Args:
        model: A built model. Subclassed models and layers need a `get_config()` from which they can be rebuilt, as
            for saving.
        rule: Returns the replacement of a layer, or None to keep it. It is called once per layer, outer layers first,
            and not for layers inside a replaced one. A replacement needs the old name if the model looks the layer up
            by name, and brings its own weights; if it is not built, it is built with the model and starts from
            initial weights.
        inputs: Inputs of the model, as for `model(inputs)`; a tuple or dict of arguments if its `call` needs several.
            A subclassed model that cannot be built from shapes is built on them.

    Returns:
        The new model.

    Raises:
        ValueError: The model is not built, or cannot be rebuilt from its configuration.

    Example:
        >>> def narrower(layer):
        ...     return layer.collapse() if isinstance(layer, MLETEmbedding) else None
        >>> served = replace_layers(model, narrower)
    """
    if not model.built:
        raise ValueError(f"`model` should be built. Received: '{model.name}', which has no weights yet")
    replacements = _ask(model, rule)
    made = _Maker(replacements).model(model, inputs)
    for source, target in paired_layers(model, made, lambda layer: id(layer) in replacements):
        if id(source) not in replacements:
            _require_weights(source, target)
            _copy_state(source, target)
    return made


def layers_of(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the model and all layers inside it; Keras has no public function for this."""
    return model._flatten_layers()


def is_graph(layer: keras.layers.Layer) -> bool:
    """Whether a model is functional or Sequential: its layers are called by a graph, not by its attributes."""
    return isinstance(layer, keras.Sequential) or isinstance(
        getattr(type(layer), "operations", None), property
    )


def paired_layers(
    one: keras.layers.Layer, other: keras.layers.Layer, is_leaf: Callable[[keras.layers.Layer], bool]
) -> Iterator[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """Yields pairs of corresponding layers of two models of the same structure, each once.

    Args:
        one: A model.
        other: Another one.
        is_leaf: Whether a layer of the first model is compared as a whole: its counterpart may differ in type and
            content.

    Raises:
        ValueError: The structures differ.
    """
    seen = set()

    def visit(
        a: keras.layers.Layer, b: keras.layers.Layer
    ) -> Iterator[tuple[keras.layers.Layer, keras.layers.Layer]]:
        if id(a) in seen:
            return
        seen.add(id(a))
        yield a, b
        if is_leaf(a):
            return
        below = _children(a), _children(b)
        alike = type(a) is type(b) or (is_graph(a) and is_graph(b))
        if not alike or len(below[0]) != len(below[1]):
            raise ValueError(
                f"`model` should make the same layers again from its `get_config()`. Received: {_names([a])} of "
                f"{_names(below[0])}, for which there is {_names([b])} of {_names(below[1])}"
            )
        for pair in zip(*below, strict=True):
            yield from visit(*pair)

    yield from visit(one, other)


def call_model(model: keras.layers.Layer, inputs: Inputs) -> Tensor:
    """Calls a model or layer; if its `call` needs several arguments, `inputs` holds them in order or by name."""
    parameters = inspect.signature(model.call).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(needed) < 2:
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def _ask(model: keras.Model, rule: Rule) -> dict[int, keras.layers.Layer]:
    """Returns the replacements by the `id()` of the layers that they replace."""
    found: dict[int, keras.layers.Layer] = {}
    seen, waiting = set(), [model]
    while waiting:
        layer = waiting.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        replacement = rule(layer)
        if replacement is not None:
            found[id(layer)] = replacement
        else:
            waiting += reversed(_children(layer))
    return found


class _Maker:
    """Rebuilds layers with the replacements in place.

    Layers are made from configurations, inner layers first. What is already made is found there as a shared object,
    which is how Keras restores a layer that is used twice. Layers that constructors make are exchanged before
    anything is built, those that `build` makes afterwards.

    Args:
        replacements: Replacements by the `id()` of the old layers.
    """

    def __init__(self, replacements: dict[int, keras.layers.Layer]) -> None:
        self._replacements = replacements
        self._made = dict(replacements)
        self._pairs: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def model(self, model: keras.Model, inputs: Inputs | None) -> keras.Model:
        """Rebuilds a model."""
        try:
            # The functions come from the model in memory, not from a file.
            with _named_apart(model), SafeModeScope(False):
                made = self._again(model)
                if not made.built and inputs is None:
                    made.build_from_config(model.get_build_config())
                if inputs is not None and not all(layer.built for layer in layers_of(made)):
                    call_model(made, inputs)
                for pair in self._pairs:
                    self._exchange(*pair)
        except (NotImplementedError, TypeError) as error:
            raise ValueError(
                f"`model` should be one that can be made again from its `get_config()`. Received: "
                f"'{model.name}' of type {type(model).__name__}, which fails with {error!r}"
            ) from error
        if not self._has_replacements(model, made):
            raise ValueError(
                f"`model` should hold its layers in its `get_config()` or in attributes, so that others can take "
                f"their place. Received: '{model.name}' of type {type(model).__name__}"
            )
        return made

    def _again(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) not in self._made:
            for child in _children(layer):
                if any(id(below) in self._replacements for below in layers_of(child)):
                    self._again(child)
            made = self._from_config(layer)
            self._exchange(layer, made)
            if is_graph(layer) and not self._has_replacements(layer, made):
                # Its constructor has called the layers that are replaced.
                made = keras.models.clone_model(layer, clone_function=self._again)
            self._made[id(layer)] = made
            self._pairs.append((layer, made))
        return self._made[id(layer)]

    def _from_config(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        below = {id(x): x for x in layers_of(layer)}
        with ObjectSharingScope():
            for old in below.keys() & self._made.keys():
                record_object_after_serialization(below[old], {"module": None})
                record_object_after_deserialization(self._made[old], old)
            return type(layer).from_config(layer.get_config())

    def _has_replacements(self, source: keras.layers.Layer, target: keras.layers.Layer) -> bool:
        expected = {id(self._replacements.get(id(layer))) for layer in layers_of(source)} - {id(None)}
        return expected <= {id(layer) for layer in layers_of(target)}

    def _exchange(self, source: keras.layers.Layer, target: keras.layers.Layer) -> None:
        """Puts the new layers into the attributes of a layer; those of a graph are in its configuration."""
        if is_graph(source):
            return
        attributes = _attributes(target)
        for name, value in _attributes(source).items():
            if name in attributes:
                changes: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []
                settled = self._settled(value, attributes[name], changes)
                if changes:
                    _set_attribute(target, name, settled, changes)

    def _settled(
        self, value: object, have: object, changes: list[tuple[keras.layers.Layer, keras.layers.Layer]]
    ) -> object:
        """Returns what an attribute should hold, given what it holds in the source, and notes the changes."""
        if isinstance(value, keras.layers.Layer) and isinstance(have, keras.layers.Layer):
            # The source's own layer came through the configuration.
            settled = self._again(value) if have is value else self._made.get(id(value), have)
            if settled is not have:
                if id(value) in self._replacements:
                    _require_same_arguments(value, have)
                changes.append((have, settled))
            return settled
        if isinstance(value, list | tuple) and isinstance(have, list | tuple) and len(value) == len(have):
            items = [self._settled(v, h, changes) for v, h in zip(value, have, strict=True)]
            make: Callable[..., object] = _plain_type(have)
            return make(*items) if hasattr(have, "_fields") else make(items)
        if isinstance(value, Mapping) and isinstance(have, Mapping):
            return {
                key: self._settled(value[key], h, changes) if key in value else h for key, h in have.items()
            }
        return have


def _children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    return layer._flatten_layers(include_self=False, recursive=False)


def _names(layers: list[keras.layers.Layer]) -> str:
    return ", ".join(f"{type(layer).__name__} {layer.name}" for layer in layers) or "nothing"


def _attributes(layer: keras.layers.Layer) -> dict[str, object]:
    """The attributes that a layer's own class has set; torch keeps layers apart from the others."""
    values = {**vars(layer), **vars(layer).get("_modules", {})}
    return {name: value for name, value in values.items() if name not in _base_attributes()}


@functools.cache
def _base_attributes() -> frozenset[str]:
    return frozenset(
        vars(keras.Model(name="base"))
    )  # Named, so that it does not advance the names of later models.


def _plain_type(value: list | tuple) -> type:
    return list if isinstance(value, list) else type(value)


def _set_attribute(
    layer: keras.layers.Layer,
    name: str,
    value: object,
    changes: list[tuple[keras.layers.Layer, keras.layers.Layer]],
) -> None:
    # Keras has no public way to give up a layer, nor to keep its place in the order of the weights.
    tracker = layer._tracker
    for old, new in changes:
        if tracker.is_in_store("layers", old):
            tracker.replace_tracked_value("layers", old, new)
    setattr(layer, name, value)


def _require_same_arguments(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    def plain(layer: keras.layers.Layer) -> str:
        config = {key: value for key, value in layer.get_config().items() if key != "name"}
        return json.dumps(config, sort_keys=True, default=lambda value: type(value).__name__)

    if type(source) is not type(target) or plain(source) != plain(target):
        raise ValueError(
            f"`model` should make the same layers again from its `get_config()`. Received: {_names([source])}, "
            f"from which came {_names([target])} with other arguments"
        )


@contextlib.contextmanager
def _named_apart(model: keras.Model) -> Iterator[None]:
    """Gives the classes and functions of a model unique names, by which Keras writes and finds them.

    Keras finds only registered classes and its own. By their usual names it would confuse two of the same name, and
    lambdas, which it writes as code, would come back without their globals.
    """
    layers = layers_of(model)
    parts = [part for layer in layers for part in (type(layer), *_definitions(vars(layer)))]
    own = [part for part in parts if part not in GLOBAL_CUSTOM_NAMES and not _is_of_keras(part)]
    names = {part: f"{part.__name__}/{i}" for i, part in enumerate(dict.fromkeys(own))}
    lambdas = [part for part in names if part.__name__ == "<lambda>"]
    # Some handwritten configurations have the name of the class.
    found: dict[str, type | FunctionType] = {part.__name__: part for part in names if isinstance(part, type)}
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


def _definitions(value: object) -> Iterator[type | FunctionType]:
    """Yields the classes and functions in a value, and in the lists and dicts within."""
    if isinstance(value, type | FunctionType):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _definitions(item)


def _is_of_keras(part: type | FunctionType) -> bool:
    return str(part.__module__).startswith("keras.")


def _require_weights(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    if not target.built and _own_variables(source):
        raise ValueError(
            f"Layer '{source.name}' should be built from its configuration. Received: a layer without "
            "weights; give the model a `build()` or a `build_from_config()`, or pass `inputs`"
        )


def _copy_state(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies a layer's own state: variables, and assets such as vocabularies."""
    try:
        if getattr(source, "lora_enabled", False):
            _copy_lora(source, target)
        else:
            target.load_own_variables(_own_variables(source))
    except ValueError as error:
        raise ValueError(
            f"Layer '{source.name}' should have the same weights when its model is made again from "
            f"`get_config()`. Received: {error}"
        ) from error
    if hasattr(source, "save_assets") and source.built:
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)


def _copy_lora(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies a Keras layer with LoRA factors unchanged; Keras's saving merges them, which rounds quantised ones."""
    values = {variable.name: variable for variable in source.variables}
    if values.keys() != {variable.name for variable in target.variables}:
        raise ValueError(f"variables {sorted(v.name for v in target.variables)}, not {sorted(values)}")
    for variable in target.variables:
        variable.assign(ops.copy(values[variable.name]))
    target.lora_alpha = source.lora_alpha


def _own_variables(layer: keras.layers.Layer) -> dict[str, Tensor]:
    store: dict[str, Tensor] = {}
    layer.save_own_variables(store)
    if keras.backend.backend() == "jax":
        # Otherwise both layers would share arrays, and `fit` and `predict` donate theirs.
        store = {name: ops.copy(variable) for name, variable in store.items()}
    return store
