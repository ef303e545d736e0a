"""Describes in words what a key accepts, from the JSON schema of its group."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

Node = dict[str, Any]

_SCALARS = {"boolean": "true or false", "integer": "an integer", "number": "a number", "string": "a text"}


class KeySchema:
    """The JSON schema of a group of keys, looked up by path.

    Args:
        model: The group.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self.root: Node = model.model_json_schema()
        self._definitions = self.root.get("$defs", {})

    def find(self, path: Sequence[str | int]) -> Node:
        """Returns the schema of the value at a path of keys and list positions; `{}` if there is no such key."""
        node = self.root
        for part in path:
            node = self.content(node)
            if isinstance(part, int):
                node = node.get("items", {})
            else:
                node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        return node

    def content(self, node: Node) -> Node:
        """The schema of a value that is not null, with references followed."""
        for option in node.get("anyOf", ()):
            if option.get("type") != "null":
                return self.content(option)
        if "$ref" in node:
            return self._definitions[node["$ref"].rsplit("/", 1)[-1]]
        return node

    def known_keys(self, node: Node) -> list[str]:
        """Returns the keys that a group or mapping accepts; empty if it accepts any."""
        node = self.content(node)
        return list(node.get("properties") or self.choices(node.get("propertyNames", {})))

    def choices(self, node: Node) -> list[str]:
        """Returns the values of a key that accepts one of a few."""
        node = self.content(node)
        return node["enum"] if "enum" in node else [node["const"]] if "const" in node else []

    def allowed(self, node: Node) -> str:
        """What a value should be, such as `an integer from 1 to 9 or null`."""
        options = node.get("anyOf", [node])
        null = " or null" if any(option.get("type") == "null" for option in options) else ""
        return self._allowed(self.content(node)) + null

    def _allowed(self, node: Node) -> str:
        if "allowed" in node:
            return node["allowed"]
        if choices := self.choices(node):
            quoted = [repr(choice) for choice in choices]
            return " or ".join(part for part in (", ".join(quoted[:-1]), quoted[-1]) if part)
        if node.get("type") == "array":
            return f"{_list(node)}, each {self.allowed(node['items'])}"
        if "properties" in node:
            return "a group of keys"
        if node.get("type") == "object":
            values = self.allowed(node["additionalProperties"])
            names = ", ".join(self.known_keys(node))
            return f"keys{f' out of {names}' if names else ''}, each with {values}"
        return f"{_SCALARS[node['type']]}{_range(node)}"


@functools.cache
def schema_of(model: type[BaseModel]) -> KeySchema:
    """The schema of a group, made once."""
    return KeySchema(model)


def key_text(path: Sequence[str | int]) -> str:
    """A path in dotted form: `grid[0].embedding`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _list(node: Node) -> str:
    low, high = node.get("minItems"), node.get("maxItems")
    what = "a list of different items" if node.get("uniqueItems") else "a list"
    if low is not None and low == high:
        return f"a list of {low}"
    if low:
        what += f" of at least {low}"
    return f"{what} of at most {high}" if high is not None else what


def _range(node: Node) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {number(low)} to {number(high)}"
    start = (
        f"of at least {number(low)}"
        if low is not None
        else f"above {number(above)}"
        if above is not None
        else ""
    )
    end = (
        f"at most {number(high)}"
        if high is not None
        else f"below {number(below)}"
        if below is not None
        else ""
    )
    return "".join(f" {part}" for part in (start, "and" if start and end else "", end) if part)


def number(value: float) -> str:
    """Formats a number for a message."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
