"""All keys of a configuration with defaults, ranges and descriptions, from the models that check them."""

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from mlet_tf.config.schema_text import KeySchema, Node, schema_of
from mlet_tf.errors import InputError, nearest

_WIDTH, _INDENT = 100, "    "


@dataclasses.dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: Dotted path; `<name>` stands for a key that the user chooses, `[]` for a position in a list.
        allowed: What the value should be, in words.
        default: The default in YAML; None for a key that has to be given.
        group: Name of the model, for a group of keys, which are listed too; else None.
        description: What the key does.
    """

    path: str
    allowed: str
    default: str | None
    group: str | None
    description: str


def keys(model: type[BaseModel]) -> list[Key]:
    """Lists all keys of a model, each group before its members."""
    schema = schema_of(model)
    return list(_keys(schema, schema.root, ""))


def key_list(model: type[BaseModel], key: str | None = None) -> str:
    """Returns all keys as text, or one key and those below it.

    Raises:
        InputError: There is no such key.
    """
    known = keys(model)
    wanted = [k for k in known if key is None or _is_below(k.path, key)]
    if not wanted:
        raise InputError(f"unknown key {key!r}.{nearest(key or '', [k.path for k in known])}")
    return "\n".join(map(_entry, wanted))


def key_tables(model: type[BaseModel], group: str | None = None) -> str:
    """Returns Markdown tables of all keys, or those of one group: one for the top level, then one for each group."""
    tables: dict[str, list[Key]] = {"": []}
    first: dict[str, str] = {}  # Where the keys of a group are listed, which several places may have.
    elsewhere: list[str] = []
    for key in keys(model):
        if group is not None and not _is_below(key.path, group):
            continue
        if any(key.path.startswith(f"{path}.") for path in elsewhere):
            continue
        row = key
        if key.group and first.setdefault(key.group, key.path) != key.path:
            elsewhere.append(key.path)
            row = dataclasses.replace(key, allowed=f"{key.allowed}, as in `{first[key.group]}`")
        top = key.path.partition(".")[0].removesuffix("[]")
        tables.setdefault(top if key.group or key.path != top else "", []).append(row)
    return "\n".join(_table(title, members) for title, members in tables.items() if members)


def _keys(schema: KeySchema, parent: Node, prefix: str) -> Iterator[Key]:
    required = parent.get("required", ())
    for name, node in parent["properties"].items():
        path = f"{prefix}{name}"
        content = schema.content(node)
        inner, below = content, f"{path}."
        if "items" in content:
            inner, below = schema.content(content["items"]), f"{path}[]."
        elif content.get("additionalProperties"):
            inner, below = schema.content(content["additionalProperties"]), f"{path}.<name>."
        group = inner["title"] if "properties" in inner else None
        default = None if name in required else _default(node.get("default"))
        description = node.get("description") or inner["description"]  # A group may have but its docstring.
        yield Key(path, schema.allowed(node), default, group, description)
        if group:
            yield from _keys(schema, inner, below)


def _is_below(path: str, key: str) -> bool:
    """Whether a path is that key's, or of something in it; `grid.seed` and `grid[0].seed` are `grid[].seed`."""
    parts = path.replace("[]", "").split(".")
    wanted = re.sub(r"\[\d*\]", "", key).split(".")
    return len(wanted) <= len(parts) and all(
        part in (name, "<name>") for part, name in zip(parts, wanted, strict=False)
    )


def _default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _entry(key: Key) -> str:
    default = "" if key.group else " (required)" if key.default is None else f" {key.default}"
    allowed = "" if key.group else f"{key.allowed[0].upper()}{key.allowed[1:]}. "
    text = textwrap.fill(allowed + key.description, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return f"{key.path}:{default}\n{text}"


def _table(title: str, members: list[Key]) -> str:
    lines = [f"### {title}", "", members[0].description, ""] if title else []
    lines += ["| key | default | allowed | |", "|---|---|---|---|"]
    for key in members:
        if key.path != title:
            default = "" if key.group else "(required)" if key.default is None else f"`{key.default}`"
            lines.append(f"| `{key.path}` | {default} | {key.allowed} | {key.description} |")
    return "\n".join([*lines, ""])
