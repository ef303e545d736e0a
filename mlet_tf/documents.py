"""YAML without the surprises of YAML 1.1: these values are read plainly or refused.

`1e-3` is a number; `on`, `off`, `yes`, `no`, `010`, `1:30` and dates are text; keys are text, each given once.
"""

import re
from pathlib import Path
from typing import ClassVar

import yaml

from mlet_tf.errors import InputError, reason
from mlet_tf.storage import decode_text
from mlet_tf.types import JsonValue

_NUMBER = r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_PLAIN = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", rf"{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
)


class DuplicateKeyError(InputError):
    """A key is given twice in one mapping."""


class _DuplicateKey(yaml.constructor.ConstructorError):
    pass


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[
        dict[str, list[tuple[str, re.Pattern[str]]]]
    ] = {}  # Filled below, by YAML's own method.

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key should be text", key.start_mark)
            if key.value in seen:
                raise _DuplicateKey(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or 1.2 would not read as text."""

    def ignore_aliases(self, data: object) -> bool:
        return True


for _tag, _pattern, _first in _PLAIN:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_document(path: str | Path, what: str) -> JsonValue:
    """Reads a YAML file.

    Args:
        path: The file.
        what: What the file is, the start of each message: `configuration runs/a.yaml`.

    Returns:
        Plain values; keys are text.

    Raises:
        InputError: The file cannot be read, is not UTF-8 or not YAML, or gives a key twice.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: {reason(error)}") from None
    return parse_document(data, what)


def parse_document(data: bytes | str, what: str) -> JsonValue:
    """Reads YAML from memory.

    Args:
        data: Text, or its bytes in UTF-8.
        what: See `read_document`.

    Returns:
        See `read_document`.

    Raises:
        InputError: It is not UTF-8 or not YAML, or gives a key twice.
    """
    text = decode_text(data, what) if isinstance(data, bytes) else data
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        if isinstance(error, yaml.constructor.ConstructorError):
            kind = DuplicateKeyError if isinstance(error, _DuplicateKey) else InputError
            raise kind(f"{what}{place}: {error.problem}") from None
        problem = "; ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{what} is not YAML{place}: {problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{what} is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def dump_document(values: object) -> str:
    """Writes plain values as YAML, which `parse_document` reads back. Keys keep their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
