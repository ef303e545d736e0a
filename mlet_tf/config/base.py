"""Groups of keys: frozen pydantic models that report each mistake on one line."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mlet_tf.config.schema_text import KeySchema, key_text, schema_of
from mlet_tf.documents import DuplicateKeyError, parse_document, read_document
from mlet_tf.errors import InputError, nearest

# `data.schema` takes the name of a method that pydantic itself has put aside.
warnings.filterwarnings("ignore", 'Field name "schema" in .* shadows an attribute', UserWarning)

KeyPath = tuple[str | int, ...]
Found = tuple[KeyPath, str]  # Where a mistake is, and the line about it.


class Group(BaseModel):
    """A group of keys. Values must have the type of their key; an empty group has its defaults.

    The constructor raises pydantic's `ValidationError` for an invalid value; `from_mapping` and `load` raise
    `InputError`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, values: Any) -> Any:
        return {} if values is None else values

    def replace(self, **changes: Any) -> Self:
        """Returns a validated copy with some keys changed."""
        return type(self)(**{**dict(self), **changes})

    def to_plain(self) -> dict[str, Any]:
        """Dicts, lists and scalars, which `from_mapping` reads back to an equal group."""
        return self.model_dump(mode="json")


G = TypeVar("G", bound=Group)


class GroupError(ValueError):
    """A mistake that a check over several keys of a group finds; it names one of them.

    Args:
        key: The dotted key, below the group that is checked.
        text: What it should be, and what was received: `should be ...`.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key!r} {text}")
        self.key, self.text = key, text


def from_mapping(cls: type[G], values: Any, where: str = "") -> G:
    """Makes a group from plain values.

    Args:
        cls: The group.
        values: A mapping, as YAML or JSON has it.
        where: Dotted key of the group in the whole, for messages.

    Returns:
        The group.

    Raises:
        InputError: With a line for each mistake: the key, the value and what is allowed.
    """
    result = _check(cls, values, where)
    if isinstance(result, cls):
        return result
    raise InputError("\n".join(line for _, line in result))


def load(
    cls: type[G],
    path: str | Path,
    overrides: Sequence[str] = (),
    check: Callable[[G], Iterable[Found]] | None = None,
) -> G:
    """Reads a group from a YAML file.

    Args:
        cls: The group.
        path: The file.
        overrides: `key=value` items, the key dotted and the value in YAML, as `--set` takes them.
        check: Finds mistakes that the group's own checks cannot see.

    Returns:
        The group.

    Raises:
        InputError: With a line for each mistake, which names the file or the override.
    """
    document = read_document(path, f"configuration {path}")
    if not isinstance(document, dict):
        raise InputError(f"configuration {path}: expected a mapping of keys. Received: {shown(document)}")
    set_by: dict[KeyPath, str] = {}
    for override in overrides:
        set_by[_override(document, override)] = override

    def source(key: KeyPath) -> str:
        near = [part for part in set_by if part == key[: len(part)] or key == part[: len(key)]]
        return f"--set {set_by[max(near, key=len)]}" if near else f"configuration {path}"

    result = _check(cls, document, "")
    found = result if isinstance(result, list) else list(check(result) if check else ())
    if isinstance(result, list) or found:
        raise InputError("\n".join(f"{source(key)}: {line}" for key, line in found))
    return result


def shown(value: object) -> str:
    """Returns a short text of a value for a message."""
    return _SHORT.repr(value)


def _check(cls: type[G], values: Any, where: str) -> G | list[Found]:
    if not isinstance(values, Mapping):
        return [((), f"{where or 'the document'}: expected a mapping of keys. Received: {shown(values)}")]
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        return list(_lines(error, schema_of(cls), where))


def _lines(error: ValidationError, schema: KeySchema, where: str) -> Iterator[Found]:
    prefix = tuple(where.split(".")) if where else ()
    mistakes = error.errors(include_url=False)
    for mistake in mistakes:
        path, kind, value = mistake["loc"], mistake["type"], mistake["input"]
        if kind == "too_short" and any(path == m["loc"][: len(path)] != m["loc"] for m in mistakes):
            continue  # Only for want of the items that have mistakes of their own.
        is_key = path[-1:] == ("[key]",)
        path = path[:-1] if is_key else path
        cause = mistake.get("ctx", {}).get("error")
        key = key_text((*prefix, *path))
        if isinstance(cause, GroupError):
            path = (*path, *cause.key.split("."))
            yield path, f"{key_text((*prefix, *path))!r} {cause.text}"
        elif kind == "extra_forbidden" or is_key:
            known = schema.known_keys(schema.find(path[:-1]))
            options = f" Known keys: {', '.join(known)}" if known else ""
            yield path, f"unknown key {key!r}.{nearest(str(path[-1]), known)}{options}"
        elif kind == "missing":
            yield path, f"missing key {key!r}; it should be {schema.allowed(schema.find(path))}"
        else:
            node = schema.find(path)
            hint = nearest(value, schema.choices(node)) if isinstance(value, str) else ""
            yield (
                path,
                f"{key!r} should be {schema.allowed(node)}. Received: {shown(value)}{hint and '.' + hint}",
            )


def _override(document: dict[str, Any], override: str) -> KeyPath:
    """Applies an override to the document; returns the path of its key."""
    key, separator, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not separator or not all(path):
        raise InputError(f"--set {override!r}: expected key=value")
    node = document
    for parent in path[:-1]:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise InputError(f"--set {override!r}: {parent!r} is not a group of keys")
    node[path[-1]] = _override_value(text, override)
    return path


def _override_value(text: str, override: str) -> Any:
    try:
        value = parse_document(text, f"--set {override}")
    except DuplicateKeyError:
        raise
    except InputError:
        return text  # A path may have characters that mean something in YAML.
    plain = isinstance(value, str) and text.strip()[0] not in "'\""
    return text.strip() if plain and " #" in text else value  # Where YAML would begin a comment.


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 8
_SHORT.maxlevel = 3
