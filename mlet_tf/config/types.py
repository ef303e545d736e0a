"""Types of values that several groups have."""

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints, WithJsonSchema

from mlet_tf.datasets.values import canonical_text
from mlet_tf.names import RENAMED_INITIALIZATIONS, Initialization

T = TypeVar("T")

_PRINTABLE = r"[^\x00-\x1f\x7f]"
_NO_GLOB = r"[^*?\[\]\x00-\x1f\x7f]"


def _each_once(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise ValueError("given twice")
    return values


def _todays_name(value: object) -> object:
    return RENAMED_INITIALIZATIONS.get(value, value) if isinstance(value, str) else value


def _integer_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _canonical(text: str) -> str:
    return canonical_text(text.encode()).decode()


InitializationName = Annotated[Initialization, BeforeValidator(_todays_name)]
Text = Annotated[
    str,
    StringConstraints(pattern=rf"^{_PRINTABLE}+$"),
    WithJsonSchema({"type": "string", "allowed": "a text"}),
]
# Of a column of the log, as its reader gives it.
Category = Annotated[
    str,
    StringConstraints(pattern=rf"^{_PRINTABLE}+$"),
    BeforeValidator(_integer_as_text),
    AfterValidator(_canonical),
    WithJsonSchema({"type": ["string", "integer"], "allowed": "a text or an integer"}),
]
Word = Annotated[
    str,
    StringConstraints(pattern=r"^[^\s\x00-\x1f\x7f]+$"),
    WithJsonSchema({"type": "string", "allowed": "a text without spaces"}),
]
# Part of a path and of an address.
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
    WithJsonSchema({"type": "string", "allowed": "a name of letters, digits, '.', '_' and '-'"}),
]
# TensorFlow and Beam look files up by pattern, so that a run would not find again what it wrote.
Folder = Annotated[
    str,
    StringConstraints(pattern=rf"^[^~*?\[\]\x00-\x1f\x7f]{_NO_GLOB}*$"),
    WithJsonSchema({"type": "string", "allowed": "a folder without * ? [ ] and without a leading ~"}),
]
Items = Annotated[tuple[T, ...], Strict(False)]  # YAML and JSON have lists.
Distinct = Annotated[
    tuple[T, ...], Strict(False), AfterValidator(_each_once), Field(json_schema_extra={"uniqueItems": True})
]

Dim = Annotated[int, Field(ge=1, le=65_536)]
Rate = Annotated[float, Field(gt=0, le=10_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=0, le=10_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
TableRows = Annotated[int, Field(ge=0, le=2**31 - 1)]
