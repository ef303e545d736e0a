"""The built-in schemas, and loading schemas from YAML files."""

from __future__ import annotations

from pathlib import Path

from mlet_tf.datasets.schema import ClickLogSchema, TimeColumn, nearest_hint
from mlet_tf.documents import parse_document
from mlet_tf.errors import InputError
from mlet_tf.storage import read_text


def load_schema(name_or_path: str) -> ClickLogSchema:
    """Returns a built-in schema, or one from a YAML file.

    Args:
        name_or_path: `"criteo"`, `"avazu"`, or the path of a `.yaml` / `.yml` file in UTF-8 whose keys are those
            of `ClickLogSchema` (see `ClickLogSchema.from_dict` for the defaults).

    Returns:
        The schema.

    Raises:
        InputError: There is no such schema or file, or the file does not hold a schema.
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
        document = read_text(text)
    except InputError as error:
        raise InputError(f"The schema file {error}") from error
    values = parse_document(document, f"The schema file {text}")
    try:
        return ClickLogSchema.from_dict(values)
    except InputError as error:
        raise InputError(f"{text}: {error}") from error


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
