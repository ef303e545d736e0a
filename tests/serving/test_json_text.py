import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.serving.local.json_parse import Members, Parser, parse
from mlet_tf.serving.local.json_print import decimal, quote_value
from mlet_tf.serving.local.status import StatusError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)  # fmt: skip


def plain(value):
    if isinstance(value, Members):
        return {key: plain(member) for key, member in value}
    return [plain(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=150)
@given(VALUES, st.booleans())
def test_both_parsers_read_what_python_wrote(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert plain(parse(body)) == value
    assert plain(Parser(body).document()) == value


@settings(max_examples=150)
@given(VALUES.filter(lambda value: not isinstance(value, float)))
def test_quoted_values_can_be_read_back(value):
    assert plain(parse(quote_value(parse(json.dumps(value).encode())).encode())) == value


@settings(max_examples=300)
@given(
    st.binary(max_size=30) | st.text(alphabet='{}[]",:0123.eE-+nulltrfasIN \\u', max_size=30).map(str.encode)
)
def test_any_bytes_are_read_or_refused_with_an_offset(body):
    try:
        parse(body)
    except StatusError as error:
        assert error.message.startswith("JSON Parse error: ")
        if body:
            assert 0 <= int(error.message.rsplit(": ", 1)[1]) <= len(body)


@settings(max_examples=300)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_reads_back_as_itself(value):
    text = decimal(value)
    assert np.float32(text) == np.float32(value)
    assert "." in text or "e" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2.0"), (0.1, "0.1"), (1e-9, "1e-09"), (123456789.0, "123456792.0"), (1e20, "1e+20"), (9e6, "9e+06"),
     (1 / 3, "0.333333343"), (-0.0, "-0.0"), (math.nan, "NaN"), (-math.inf, "-Infinity")],
)  # fmt: skip
def test_floats_as_a_server_prints_them(value, text):
    assert decimal(np.float32(value)) == text


def test_repeated_keys_and_forms_that_python_refuses():
    assert parse(b'{"a": 1, "a": 2}').find("a") == 1
    assert parse(b'\xef\xbb\xbf{"a": [Inf, -Inf, -Infinity]}').find("a") == [math.inf, -math.inf, -math.inf]
    assert parse(b'"\\ud83d\\ude00"') == "😀"
    assert parse(b'["\xff"]') == ["\udcff"]
    # Each byte of a byte order mark is skipped by itself, and "Na" does not keep "Inf" from being read.
    assert parse(b"\xbb\xbf[NaInf, -Inf, Inf.5, Infe2, -0]") == [math.inf, -math.inf, 0.5, 0.0, 0]


def test_a_low_surrogate_alone_passes_as_bytes():
    (text,) = parse(b'["\\udc80"]')
    assert text.encode("utf-8", "surrogateescape") == b"\xed\xb2\x80"


def test_how_large_a_number_may_be_is_up_to_its_exponent():
    assert parse(b"[123456789e305, 1e308, 1e-999, 0.00001e313, 1e0005]") == [math.inf, 1e308, 0.0, 1e308, 1e5]
    for number in (b"1e309", b"0e309", b"-1E+999999999999", b"2" + b"0" * 308, b"1.5e400"):
        with pytest.raises(StatusError, match=r"Number too big to be stored in double\. at offset: 1$"):
            parse(b"[" + number + b"]")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_is_not_limited(opening):
    depth, closing = 30_000, "]" if opening == "[" else "}"
    value = parse((opening * depth + "1" + closing * depth).encode())
    for _ in range(depth):
        value = value[0] if opening == "[" else value.find("a")
    assert value == 1
    with pytest.raises(StatusError, match=f"after an .*\\. at offset: {len(opening) * depth + 1}$"):
        parse((opening * depth + "1").encode())
    # What quotes it stops somewhere.
    assert len(quote_value(parse((opening * depth + "1" + closing * depth).encode()))) < 50_000_000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b" ", "The document is empty. at offset: 1"),
        (b'{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
        (b"{1: 2}", "Missing a name for object member. at offset: 1"),
        (b"[1,]", "Invalid value. at offset: 3"),
        (b"[-]", "Invalid value. at offset: 2"),
        (b"[01]", "Missing a comma or ']' after an array element. at offset: 2"),
        (b"[1.]", "Miss fraction part in number. at offset: 3"),
        (b"[1e+]", "Miss exponent in number. at offset: 4"),
        (b'["a', "Missing a closing quotation mark in string. at offset: 3"),
        (b'["a\n"]', "Invalid escape character in string. at offset: 3"),
        (b'["\\u12g4"]', "Incorrect hex digit after \\u escape in string. at offset: 2"),
        (b'["\\ud800"]', "The surrogate pair in string is invalid. at offset: 2"),
        (b"[tru]", "Invalid value. at offset: 4"),
        (b"[Infinite]", "Invalid value. at offset: 8"),
        (b"[" * 5000, "Invalid value. at offset: 5000"),
        (b'{"a": 1', "Missing a comma or '}' after an object member. at offset: 7"),
        (b'{"a": 1 "b"}', "Missing a comma or '}' after an object member. at offset: 8"),
        (b'["a\tb"]', "Invalid escape character in string. at offset: 3"),
        (b'{"a\x1f": 1}', "Invalid escape character in string. at offset: 3"),
        (b'["\\ud800x"]', "The surrogate pair in string is invalid. at offset: 2"),
        (b'["\\ud800\\u00"]', "Incorrect hex digit after \\u escape in string. at offset: 2"),
        (b"[NaX]", "Invalid value. at offset: 3"),
        (b"\xef\xbb\xbf", "The document is empty. at offset: 3"),
        (b'{"a": 1,}', "Missing a name for object member. at offset: 8"),
        (b"[]]", "The document root must not be followed by other values. at offset: 2"),
    ],
)
def test_where_and_why_a_body_is_refused(body, words):
    with pytest.raises(StatusError) as caught:
        parse(body)
    assert caught.value.message == f"JSON Parse error: {words}"
