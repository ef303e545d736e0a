"""What the columns of a click log mean, and how its files are written."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from mlet_tf.datasets.values import canonical_text
from mlet_tf.errors import InputError, nearest
from mlet_tf.types import JsonValue

TIME_FORMATS = ("yymmddhh", "unix_seconds", "iso8601")
QUOTINGS = ("auto", "rfc4180", "none")
TIME_PARTS = ("hour_of_day", "weekday")
_NAME_BYTES = 128
_SHOWN = 200


@dataclasses.dataclass(frozen=True)
class TimeColumn:
    """The column that says when a row was logged.

    Args:
        name: Column name.
        format: `"yymmddhh"` (Avazu: 14102100 is 2014-10-21, 00 h), `"unix_seconds"`, or `"iso8601"`
            (2014-10-21T00:30:00+02:00; UTC where no zone is given), which is read as Unix seconds. A larger
            number is a later row.
        derive: Categorical features made from it: `"hour_of_day"` (0..23) and `"weekday"` (0 is Monday).
    """

    name: str
    format: str = "yymmddhh"
    derive: tuple[str, ...] = TIME_PARTS

    def __post_init__(self) -> None:
        """Checks the values."""
        _check_name("time.name", self.name)
        if self.format not in TIME_FORMATS:
            raise InputError(
                f"`time.format` should be {_one_of(TIME_FORMATS)}. Received: {self.format!r}"
                + nearest_hint(str(self.format), TIME_FORMATS)
            )
        _check_names("time.derive", self.derive)
        for part in self.derive:
            if part not in TIME_PARTS:
                raise InputError(
                    f"`time.derive` should hold names out of {list(TIME_PARTS)}. Received: {part!r}"
                    + nearest_hint(part, TIME_PARTS)
                )


@dataclasses.dataclass(frozen=True)
class ClickLogSchema:
    r"""The columns of a click log and how its text files are written.

    Every column of `columns` has exactly one role: label, integer, categorical, time or dropped.

    Args:
        name: Name of the data set.
        label: Column with 0 (no click) or 1 (click), or with the texts of `positive` and `negative`.
        integers: Columns of 64-bit integers; `260.0` is one.
        categoricals: Columns of categories: text, kept as the bytes in the file, or whole numbers. `5.0` is the
            category `5`.
        time: The time column, if there is one.
        drop: Columns to ignore.
        columns: All columns in file order. In Parquet and in text with a header, columns are found by name instead,
            in any order; further columns are ignored.
        separator: One character between the fields of a text file.
        header: Whether the first line of each text file names the columns.
        missing: Texts that mean "no value" in integer and categorical columns, besides the empty text.
        quoting: How text files quote: `"rfc4180"` (double quotes around a field, doubled inside it, no line break),
            `"none"` (a quote is part of the value), or `"auto"`: RFC 4180 if there is a quoted field in the first
            lines of a file. Files separated by TAB or `\x01` are never quoted under `"auto"`.
        positive: Label texts that mean a click, if labels are not 0 and 1.
        negative: Label texts that mean no click; by default all texts not in `positive`.

    Example:
        >>> CRITEO.raw_features[:2], CRITEO.sparse_features[:2]
        (('I1', 'I2'), ('C1', 'C2'))
    """

    name: str
    label: str
    integers: tuple[str, ...]
    categoricals: tuple[str, ...]
    time: TimeColumn | None
    drop: tuple[str, ...]
    columns: tuple[str, ...]
    separator: str
    header: bool
    missing: tuple[str, ...]
    quoting: str = "auto"
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the values against each other."""
        _check_text("name", self.name)
        _check_name("label", self.label)
        for key in ("integers", "categoricals", "drop"):
            _check_names(key, getattr(self, key))
        if self.time is not None and not isinstance(self.time, TimeColumn):
            raise InputError(f"`time` should be a TimeColumn or None. Received: {self.time!r}")
        if not isinstance(self.header, bool):
            raise InputError(f"`header` should be true or false. Received: {self.header!r}")
        self._check_quoting()
        self._check_separator()
        self._check_missing()
        self._check_label_texts()
        self._check_roles()

    def _check_quoting(self) -> None:
        if self.quoting not in QUOTINGS:
            raise InputError(
                f"`quoting` should be {_one_of(QUOTINGS)}. Received: {self.quoting!r}"
                + nearest_hint(str(self.quoting), QUOTINGS)
            )

    def _check_separator(self) -> None:
        separator = self.separator
        if (
            not isinstance(separator, str)
            or len(separator) != 1
            or ord(separator) > 126
            or separator in "\0\r\n"
        ):
            raise InputError(
                f"`separator` should be one ASCII character that does not end a line. Received: {separator!r}"
            )
        if separator == '"' and self.quoting != "none":
            raise InputError("`separator` should not be the quote unless `quoting` is 'none'. Received: '\"'")

    def _check_missing(self) -> None:
        if not isinstance(self.missing, tuple) or not all(isinstance(mark, str) for mark in self.missing):
            raise InputError(f"`missing` should be a list of texts. Received: {_shown(self.missing)}")
        for mark in self.missing:
            if any(char in mark for char in (self.separator, "\n", "\r", "\0")):
                raise InputError(
                    f"`missing` should hold texts that fit into one field. Received: {mark!r}, which holds a "
                    "separator, a line end or a NUL"
                )

    def _check_label_texts(self) -> None:
        for key in ("positive", "negative"):
            texts = getattr(self, key)
            if not isinstance(texts, tuple) or not all(isinstance(text, str) and text for text in texts):
                raise InputError(
                    f"`{key}` should be a list of label texts (write '1' and 'true' in quotes). "
                    f"Received: {_shown(texts)}"
                )
        for text in self.negative:
            if not self.positive:
                raise InputError(f"`negative` should come with `positive`. Received: {text!r} alone")
            if text in self.positive:
                raise InputError(
                    f"`positive` and `negative` should have no text in common. Received: {text!r}"
                )
        for text in (*self.positive, *self.negative):
            if text in self.missing:
                raise InputError(f"`missing` should hold no label text. Received: {text!r}")

    def _check_roles(self) -> None:
        roles = self._role_of_each()
        _check_names("columns", self.columns)
        for name in self.columns:
            if self.header and self.quoting == "none" and self.separator in name:
                raise InputError(
                    "`columns` should hold names without the separator, as `header` is true and `quoting` is "
                    f"'none'. Received: {name!r}"
                )
            if name not in roles:
                raise InputError(
                    "Each of `columns` should have a role (put those not wanted under `drop`). "
                    f"Received: {name!r}, which has none" + nearest_hint(name, roles)
                )
        for name, role in roles.items():
            if name not in self.columns:
                raise InputError(
                    f"`{role}` should hold names out of `columns`. Received: {name!r}"
                    + nearest_hint(name, self.columns)
                )
        if not self.raw_features:
            raise InputError(
                "A schema should have at least one integer, categorical or time column. Received: none"
            )
        for part in self.time.derive if self.time else ():
            if part in roles:
                raise InputError(
                    f"`time.derive` makes a feature named {part!r}, so no column should have that name. "
                    f"Received: {part!r} in `{roles[part]}`"
                )

    def _role_of_each(self) -> dict[str, str]:
        roles: dict[str, str] = {}
        for role, names in self._roles().items():
            for name in names:
                if name in roles:
                    raise InputError(
                        "Each column should have one role. "
                        f"Received: {name!r} in `{roles[name]}` and in `{role}`"
                    )
                roles[name] = role
        return roles

    def _roles(self) -> dict[str, tuple[str, ...]]:
        return {
            "label": (self.label,),
            "integers": self.integers,
            "categoricals": self.categoricals,
            "time": (self.time.name,) if self.time else (),
            "drop": self.drop,
        }

    @property
    def raw_features(self) -> tuple[str, ...]:
        """Columns of the tf.Example besides the label: integers, then time, then categoricals."""
        return self.integers + self._roles()["time"] + self.categoricals

    @property
    def sparse_features(self) -> tuple[str, ...]:
        """Features with an embedding, in the model's order: categoricals, then those derived from time."""
        return self.categoricals + (self.time.derive if self.time else ())

    @property
    def missing_marks(self) -> tuple[str, ...]:
        """All texts that mean "no value", the empty one first; `5.0` stands for `5` here too."""
        canonical = (canonical_text(mark.encode()).decode() for mark in self.missing)
        return tuple(dict.fromkeys(("", *self.missing, *canonical)))

    @property
    def label_texts(self) -> tuple[str, str]:
        """The texts of no click and of a click in a file."""
        if not self.positive:
            return "0", "1"
        free = (text for text in ("0", "-1", "no") if text not in (*self.positive, *self.missing))
        return self.negative[0] if self.negative else next(free, "none"), self.positive[0]

    def to_dict(self) -> dict[str, JsonValue]:
        """Plain values for YAML or JSON; `from_dict` is the inverse."""
        values = dataclasses.asdict(self)
        if self.time is not None:
            values["time"]["derive"] = list(self.time.derive)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: object) -> ClickLogSchema:
        """Makes a schema from plain values.

        Args:
            values: A mapping with the class's arguments as keys. `name`, `label` and one list of features are needed.
                `columns` is by default label, integers, time, categoricals, drop; `separator` is by default a
                TAB, `header` false, `missing` the empty text, `quoting` `"auto"`.

        Returns:
            The checked schema.

        Raises:
            InputError: A key is unknown or absent, or a value does not fit.
        """
        keys = [field.name for field in dataclasses.fields(cls)]
        filled: dict[str, Any] = {
            "time": None,
            "separator": "\t",
            "header": False,
            "missing": ("",),
            **dict.fromkeys(("integers", "categoricals", "drop"), ()),
            **_arguments("schema", values, keys, required=("name", "label")),
        }
        if filled["time"] is not None and not isinstance(filled["time"], TimeColumn):
            filled["time"] = _time_from_dict(filled["time"])
        if "columns" not in filled:
            for key in ("integers", "categoricals", "drop"):
                _check_names(key, filled[key])
            time = (filled["time"].name,) if filled["time"] else ()
            filled["columns"] = (
                (filled["label"],) + filled["integers"] + time + filled["categoricals"] + filled["drop"]
            )
        return cls(**filled)


def reading_schema(schema: ClickLogSchema, column: str, key: str) -> ClickLogSchema:
    """The schema with which a log is read so that its tables have a column, which may be one to drop.

    Args:
        schema: Schema of the log.
        column: The column. If it is dropped, it is read as the last category.
        key: Dotted key that names the column, for the message.

    Raises:
        InputError: The schema has no such column, or it is the label.
    """
    if column not in schema.columns or column == schema.label:
        known = [name for name in schema.columns if name != schema.label]
        raise InputError(
            f"{key!r} should be a column of schema {schema.name!r} other than its label. Received: {column!r}."
            f"{nearest(column, known)} Columns: {', '.join(known)}"
        )
    if column not in schema.drop:
        return schema
    drop = tuple(name for name in schema.drop if name != column)
    return dataclasses.replace(schema, categoricals=(*schema.categoricals, column), drop=drop)


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """Returns `". Did you mean 'x'?"` for the known name nearest to `name`, or an empty text."""
    hint = nearest(name, known)
    return f".{hint}" if hint else ""


def _time_from_dict(values: object) -> TimeColumn:
    keys = [field.name for field in dataclasses.fields(TimeColumn)]
    return TimeColumn(**_arguments("time", values, keys, required=("name",)))


def _arguments(where: str, values: object, keys: list[str], required: tuple[str, ...]) -> dict[str, Any]:
    """Returns a mapping's values as arguments, after checking its keys; the constructor checks the values."""
    if not isinstance(values, Mapping):
        raise InputError(f"`{where}` should hold the keys {keys}. Received: {_shown(values)}")
    for key in values:
        if key not in keys:
            hint = nearest_hint(str(key), keys) or f". Known keys: {', '.join(keys)}"
            raise InputError(f"`{where}` has an unknown key {key!r}{hint}")
    for key in required:
        if key not in values:
            raise InputError(
                f"`{where}` should have the key {key!r}. Received keys: {', '.join(map(str, values))}"
            )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _check_text(key: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InputError(f"`{key}` should be a text that is not empty. Received: {_shown(value)}")


def _check_name(key: str, name: object) -> None:
    """Checks a column name; every stage from the file to the server can handle all other characters."""
    if not isinstance(name, str):
        raise InputError(f"`{key}` should hold column names (texts). Received: {_shown(name)}")
    if not name:
        raise InputError(f"`{key}` should be a text that is not empty. Received: {name!r}")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        raise InputError(f"`{key}` should hold names without control characters. Received: {_shown(name)}")
    if len(name.encode()) > _NAME_BYTES:
        raise InputError(
            f"`{key}` should hold names of at most {_NAME_BYTES} bytes of UTF-8. "
            f"Received: {_shown(name)} of {len(name.encode())}"
        )


def _check_names(key: str, names: object) -> None:
    if not isinstance(names, tuple):
        raise InputError(f"`{key}` should be a list of column names. Received: {_shown(names)}")
    seen = set()
    for name in names:
        _check_name(key, name)
        if name in seen:
            raise InputError(f"`{key}` should name each column once. Received: {name!r} twice")
        seen.add(name)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)
