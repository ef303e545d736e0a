"""The built-in schemas, and those in YAML files."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mlet_tf.datasets.files import open_binary
from mlet_tf.datasets.schema import ClickLogSchema, TimeColumn, nearest_hint
from mlet_tf.errors import InputError

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def load_schema(name_or_path: str) -> ClickLogSchema:
    """Returns a built-in schema, or the one written in a YAML file.

    Args:
        name_or_path: `"criteo"`, `"avazu"`, or the path of a `.yaml` / `.yml` file in UTF-8 whose keys are those
            of `ClickLogSchema` (see `ClickLogSchema.from_dict` for the defaults).

    Returns:
        The schema.

    Raises:
        InputError: No such schema or file, or the file does not hold a schema.
    """
    text = str(name_or_path)
    if text in PRESETS:
        return PRESETS[text]
    if Path(text).suffix not in (".yaml", ".yml"):
        names = " or ".join(map(repr, PRESETS))
        raise InputError(
            f"A schema should be {names} or the path of a .yaml file. Received: {text!r}"
            + nearest_hint(text, PRESETS)
        )
    try:
        with open_binary(text) as file:
            data = file.read()
    except InputError as error:
        raise InputError(f"The schema file {error}") from error
    values = _parse(text, data)
    try:
        return ClickLogSchema.from_dict(values)
    except InputError as error:
        raise InputError(f"{text}: {error}") from error


def _parse(path: str, data: bytes) -> Any:
    try:
        document = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "UTF-16" if data.startswith(_UTF16) else f"byte 0x{data[error.start]:02x}"
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: a schema should be UTF-8 text. Received: {found} in line {line}") from None
    try:
        return yaml.load(document, _Loader)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"The schema file {path} is not YAML: {_one_line(error)}") from error
    except (RecursionError, ValueError, TypeError, OverflowError) as error:  # [[[[..., dates of month 13
        raise InputError(f"The schema file {path} is not YAML: {' '.join(str(error).split())}") from error


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable):
                if name in seen:
                    line = key.start_mark.line + 1
                    raise InputError(f"a key should be given once. Received: {name!r} again in line {line}")
                seen.add(name)
        return super().construct_mapping(node, deep)


def _criteo() -> ClickLogSchema:
    integers = tuple(f"I{i}" for i in range(1, 14))
    categoricals = tuple(f"C{i}" for i in range(1, 27))
    return ClickLogSchema(
        name="criteo",
        label="label",
        integers=integers,
        categoricals=categoricals,
        time=None,
        drop=(),
        columns=("label", *integers, *categoricals),
        separator="\t",
        header=False,
        missing=("",),
        quoting="none",
    )


def _avazu() -> ClickLogSchema:
    categoricals = (
        *(
            "C1",
            "banner_pos",
            "site_id",
            "site_domain",
            "site_category",
            "app_id",
            "app_domain",
            "app_category",
        ),
        *("device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
        *(f"C{i}" for i in range(14, 22)),
    )
    return ClickLogSchema(
        name="avazu",
        label="click",
        integers=(),
        categoricals=categoricals,
        time=TimeColumn("hour"),
        drop=("id",),
        columns=("id", "click", "hour", *categoricals),
        separator=",",
        header=True,
        missing=("",),
        quoting="none",
    )


CRITEO = _criteo()
AVAZU = _avazu()
PRESETS = {schema.name: schema for schema in (CRITEO, AVAZU)}
