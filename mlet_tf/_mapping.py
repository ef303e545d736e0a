"""Frozen dataclasses from plain mappings, with errors that name the key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from mlet_tf.errors import InputError

T = TypeVar("T")


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the closest of `known`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def from_mapping(cls: type[T], values: Any, where: str = "") -> T:
    """Fills a dataclass from a mapping, nested dataclasses included.

    Args:
        cls: A dataclass type; its annotations say what each value must be.
        values: The mapping, as a YAML file gives it.
        where: Dotted path of `values` in the whole document, for messages.

    Returns:
        An instance of `cls`.

    Raises:
        InputError: On an unknown key (the nearest known one is named), a missing required key or
            a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where or 'the document'}: expected a mapping of keys. Received: {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            known = ", ".join(fields)
            raise InputError(
                f"unknown key {_join(where, key)!r}.{nearest(str(key), fields)} Known keys: {known}"
            )
    kwargs = {}
    for name, field in fields.items():
        if name in values:
            kwargs[name] = _convert(hints[name], values[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"missing key {_join(where, name)!r}")
    try:
        return cls(**kwargs)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def to_mapping(value: Any) -> Any:
    """The inverse of `from_mapping`: plain dicts, lists and scalars."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_mapping(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_mapping(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_mapping(item) for key, item in value.items()}
    return value


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, {} if value is None else value, where)
    if origin is typing.Literal:
        if value not in args:
            raise _mismatch(where, " or ".join(map(repr, args)), value)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _mismatch(where, "a list", value)
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _mismatch(where, "a mapping", value)
        return {str(key): _convert(args[1], item, _join(where, key)) for key, item in value.items()}
    return _scalar(hint, value, where)


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    failures = []
    for arg in args:
        if arg is not type(None):
            try:
                return _convert(arg, value, where)
            except InputError as error:
                failures.append(error)
    raise failures[0]


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string.
        except (TypeError, ValueError):
            raise _mismatch(where, "a number", value) from None
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    names = {int: "an integer", bool: "true or false", str: "a string"}
    raise _mismatch(where, names.get(hint, str(hint)), value)


def _mismatch(where: str, expected: str, value: Any) -> InputError:
    return InputError(f"{where!r} should be {expected}. Received: {value!r}")
