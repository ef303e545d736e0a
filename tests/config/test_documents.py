"""YAML as its authors mean it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.documents import dump_document, parse_document, read_document
from mlet_tf.errors import InputError

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(
        ["1e-3", "on", "no", "010", "1:30", "2014-10-21", "null", "~", "<<", "=", "1_000", ".5", "0x10"]
    ),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5E3", 1500.0),
        ("-.5", -0.5),
        ("1_000_000", 1_000_000),
        ("+5", 5),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("N", "N"),
        ("true", True),
        ("010", "010"),
        ("0o10", "0o10"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2014-10-21", "2014-10-21"),
        ("0", 0),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("'5'", "5"),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    (read,) = parse_document(f"- {text}", "x")
    assert read == value and type(read) is type(value)


def test_keys_are_text():
    assert parse_document("{1: a, on: b, null: c, 010: d}", "x") == {
        "1": "a",
        "on": "b",
        "null": "c",
        "010": "d",
    }


def test_anchors_and_merged_groups_work():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n"
    assert parse_document(text, "x") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


@given(
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
    )
)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back(values):
    assert parse_document(dump_document(values), "x") == values


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"train:\n  epochs: 1\n  seed: 0\n  epochs: 2\n",
            "f, line 4, column 3: the key 'epochs' is given twice",
        ),
        (b"a: 1\nb: {c: 1, c: 2}\n", "f, line 2, column 11: the key 'c' is given twice"),
        (b"[a]: 1\n", "f, line 1, column 1: a key should be text"),
        ("# é\nname: à\n".encode("latin-1"), "f should be UTF-8 text. Received: byte 0xe9 in line 1"),
        ("name: a\n".encode("utf-16"), "f should be UTF-8 text. Received: UTF-16"),
        ("name: a\n".encode("utf-16-le"), "f should be UTF-8 text. Received: "),
        (b"a: [", "f is not YAML, line 1, column 5"),
        (b"a: b: c", "f is not YAML, line 1, column 5"),
        (
            b"a: !!python/object/apply:os.system [ls]",
            "f, line 1, column 4: could not determine a constructor",
        ),
        (b"a: \x07", "f is not YAML"),
        (b"a: " + b"9" * 5000, "f is not YAML"),
        (b"[" * 500, "f is nested too deeply"),
        (b"a: 1\n---\nb: 2\n", "f is not YAML, line 2"),
    ],
)
def test_mistakes_are_one_line_with_the_place(data, message):
    with pytest.raises(InputError) as error:
        parse_document(data, "f")
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_files(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes("\ufeffname: é\n".encode())
    assert read_document(path, "f") == {"name": "é"}
    for wrong in (tmp_path, tmp_path / "absent.yaml", "a\0b"):
        with pytest.raises(InputError, match=r"^f: "):
            read_document(wrong, "f")
