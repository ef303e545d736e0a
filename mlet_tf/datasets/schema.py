"""What the columns of a click log mean: presets for Criteo and Avazu, any other log through YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlet_tf.documents import parse_document
from mlet_tf.errors import InputError, nearest
from mlet_tf.storage import open_binary

TIME_FORMATS = ("yymmddhh", "unix_seconds")
TIME_PARTS = ("hour_of_day", "weekday")


@dataclasses.dataclass(frozen=True)
class TimeColumn:
    """The column that says when a row was logged.

    Args:
        name: Column name.
        format: `"yymmddhh"` (Avazu: 14102100 is 2014-10-21, 00 h) or `"unix_seconds"`. In both, a larger
            number is a later row.
        derive: Categorical features made from it: `"hour_of_day"` (0..23) and `"weekday"` (0 is Monday).
    """

    name: str
    format: str = "yymmddhh"
    derive: tuple[str, ...] = TIME_PARTS

    def __post_init__(self) -> None:
        """Checks the values; see the class."""
        _check_text("time.name", self.name)
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
        label: Column with 0 (no click) or 1 (click).
        integers: Columns of 64-bit integers.
        categoricals: Columns of categories, kept as the bytes found in the file.
        time: The time column, if there is one.
        drop: Columns that are read over.
        columns: All columns in file order. Where the file has a header (and in Parquet) the columns are
            found by name instead, in whatever order they are; others beside them are read over.
        separator: One character between the fields of a text file.
        header: Whether the first line of each text file names the columns.
        missing: Field texts that mean "no value" in integer and categorical columns.

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

    def __post_init__(self) -> None:
        """Checks the values against each other; see the class."""
        _check_text("name", self.name)
        _check_text("label", self.label)
        for key in ("integers", "categoricals", "drop"):
            _check_names(key, getattr(self, key))
        if self.time is not None and not isinstance(self.time, TimeColumn):
            raise InputError(f"`time` should be a TimeColumn or None. Received: {self.time!r}")
        if not isinstance(self.header, bool):
            raise InputError(f"`header` should be true or false. Received: {self.header!r}")
        self._check_separator()
        self._check_missing()
        self._check_roles()

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

    def _check_missing(self) -> None:
        if not isinstance(self.missing, tuple) or not all(isinstance(mark, str) for mark in self.missing):
            raise InputError(f"`missing` should be a list of texts. Received: {self.missing!r}")
        for mark in self.missing:
            if any(char in mark for char in (self.separator, "\n", "\r", "\0")):
                raise InputError(
                    f"`missing` should hold texts that fit into one field. Received: {mark!r}, which holds a "
                    "separator, a line end or a NUL"
                )

    def _check_roles(self) -> None:
        roles = self._role_of_each()
        _check_names("columns", self.columns)
        for name in self.columns:
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
        """Columns of the tf.Example beside the label: integers, then time, then categoricals."""
        return self.integers + self._roles()["time"] + self.categoricals

    @property
    def sparse_features(self) -> tuple[str, ...]:
        """Features with an embedding, in the model's order: categoricals, then those derived from time."""
        return self.categoricals + (self.time.derive if self.time else ())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML or JSON; `from_dict` is the way back."""
        values = dataclasses.asdict(self)
        if self.time is not None:
            values["time"]["derive"] = list(self.time.derive)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClickLogSchema:
        """Makes a schema from plain values.

        Args:
            values: Keys as the class's arguments. `name`, `label` and one list of features are needed.
                `columns` is by default label, integers, time, categoricals, drop; `separator` is by default a
                TAB, `header` false, `missing` the empty text.

        Returns:
            The checked schema.

        Raises:
            InputError: A key is unknown or absent, or a value does not fit.
        """
        keys = [field.name for field in dataclasses.fields(cls)]
        _check_keys("schema", values, keys, required=("name", "label"))
        filled = {
            "time": None,
            "separator": "\t",
            "header": False,
            "missing": ("",),
            **dict.fromkeys(("integers", "categoricals", "drop"), ()),
            **{key: _tuple(value) for key, value in values.items()},
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


def load_schema(name_or_path: str) -> ClickLogSchema:
    """Returns the preset of that name, or the schema written in that YAML file.

    Args:
        name_or_path: `"criteo"`, `"avazu"`, or the path of a `.yaml` / `.yml` file whose keys are those of
            `ClickLogSchema` (see `ClickLogSchema.from_dict` for the defaults).

    Returns:
        The schema.

    Raises:
        InputError: No such preset or file, or the file does not hold a schema.
    """
    text = str(name_or_path)
    if text in PRESETS:
        return PRESETS[text]
    if Path(text).suffix not in (".yaml", ".yml"):
        raise InputError(
            f"A schema should be {_one_of(PRESETS)} or the path of a .yaml file. Received: {text!r}"
            + nearest_hint(text, PRESETS)
        )
    try:
        with open_binary(text) as file:
            data = file.read()
    except InputError as error:
        raise InputError(f"The schema file {error}") from error
    values = parse_document(data, f"The schema file {text}")
    try:
        return ClickLogSchema.from_dict(values)
    except InputError as error:
        raise InputError(f"{text}: {error}") from error


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """Returns `". Did you mean 'x'?"` for the known name nearest to `name`, or an empty text."""
    hint = nearest(name, known)
    return f".{hint}" if hint else ""


def _time_from_dict(values: Any) -> TimeColumn:
    keys = [field.name for field in dataclasses.fields(TimeColumn)]
    _check_keys("time", values, keys, required=("name",))
    return TimeColumn(**{key: _tuple(value) for key, value in values.items()})


def _check_keys(where: str, values: Any, keys: list[str], required: tuple[str, ...]) -> None:
    if not isinstance(values, Mapping):
        raise InputError(f"`{where}` should hold the keys {keys}. Received: {values!r}")
    for key in values:
        if key not in keys:
            hint = nearest_hint(str(key), keys) or f". Known keys: {', '.join(keys)}"
            raise InputError(f"`{where}` has an unknown key {key!r}{hint}")
    for key in required:
        if key not in values:
            raise InputError(
                f"`{where}` should have the key {key!r}. Received keys: {', '.join(map(str, values))}"
            )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise InputError(f"`{key}` should be a text that is not empty. Received: {value!r}")


def _check_names(key: str, names: Any) -> None:
    if not isinstance(names, tuple):
        raise InputError(f"`{key}` should be a list of column names. Received: {names!r}")
    seen = set()
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"`{key}` should hold column names (texts). Received: {name!r}")
        if name in seen:
            raise InputError(f"`{key}` should name each column once. Received: {name!r} twice")
        seen.add(name)


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)


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
    )


CRITEO = _criteo()
AVAZU = _avazu()
PRESETS = {schema.name: schema for schema in (CRITEO, AVAZU)}
