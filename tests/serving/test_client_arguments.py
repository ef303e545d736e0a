"""Arguments of the client that do not fit: one `InputError`, the same over both protocols and for both clients."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlet_tf.errors import InputError
from mlet_tf.serving import AsyncCTRClient, CTRClient
from mlet_tf.serving.target import Target

NAN, INF = math.nan, math.inf

# An argument, values that are refused, and what the message says before "Received".
REFUSED = {
    "timeout": (
        [None, "5", INF, NAN, True, 0, -1, 1e6, 10**400, [1]],
        "timeout: expected a number of seconds above 0",
    ),
    "backoff": ([None, "5", INF, NAN, True, -0.1], "backoff: expected a number of seconds from 0"),
    "retries": ([None, "5", 1.5, -1, True, NAN], "retries: expected an integer of at least 0"),
    "max_batch": ([None, "5", 0, 1.5, True], "max_batch: expected an integer of at least 1"),
    "max_concurrency": ([None, "5", 0, 1.5, True], "max_concurrency: expected an integer of at least 1"),
    "version": (["1", -1, True, 1.0, NAN, 2**63], "version: expected an integer of at least 0"),
    "label": (["", 1, b"stable", "\ud800"], "label: expected a text that is not empty"),
    "model_name": (["", None, 1, b"ctr", "\ud800"], "model_name: expected a text that is not empty"),
    "signature": (["", None, 1, b"x"], "signature: expected a text that is not empty"),
    "input_name": (["", None, 1, b"x"], "input_name: expected a text that is not empty"),
    "tls": (["yes", 1], "tls: expected True, False or a Tls"),
    "token": ([1, b"secret"], "token: expected a text or a function"),
    "schema": (["criteo", 1], "schema: expected a ClickLogSchema"),
    "rng": ([7, np.random.default_rng(0)], "rng: expected a random.Random"),
}
CASES = [(name, value, words) for name, (values, words) in REFUSED.items() for value in values]

TARGETS = [
    "", None, 8501, b"host:8501", "host", "host:", ":8501", "host:x", "host:-1", "host:+1", "host:0", "host:65536",
    "localhost:99999", "host:8501:8501", " host:8501", "host:8501 ", "ho st:8501", "host:8501\n", "host:8501?x",
    "host:8501#x", "host:8501/", "host:8501/prefix", "user@host:8501", "user:secret@host:8501", "::1", "::1:8501",
    "[::1]", "[::1]x:8501", "[host]:8501", "[127.0.0.1]:8501", "1.2.3:8501", "256.1.1.1:8501", "0x7f000001:8501",
    "127.1:8501", "2130706433:8501", "a..b:8501", ".:8501", "-a:8501", "h\u00f6st:8501", "host:\u0661", "dns:///h:1",
    "unix:/tmp/socket", "ftp://host:8501", "http//host:8501", "http://", "http://:8501", "http://user@host:8501",
    "http://host:8501?x", "http://host:8501/p?x", "http://host:8501/p#x", "http://host:8501/a b", "http://host:99999",
    "http://::1:8501", "http://host:",
]  # fmt: skip

both_protocols = pytest.mark.parametrize("protocol", ["grpc", "rest"])


def refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@both_protocols
@pytest.mark.parametrize("make", [CTRClient, AsyncCTRClient])
@pytest.mark.parametrize(("name", "value", "words"), CASES)
def test_an_argument_that_does_not_fit_is_refused_alike(make, protocol, name, value, words):
    message = refusal(lambda: make("127.0.0.1:8500", protocol=protocol, **{name: value}))
    assert message.startswith(words)
    assert ". Received: " in message and "secret" not in message


@both_protocols
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_does_not_fit_is_refused_alike(protocol, target):
    message = refusal(lambda: CTRClient(target, protocol=protocol))
    assert message.startswith("target: expected host:port")
    assert message.endswith(f"Received: {target!r}")


@pytest.mark.parametrize("url", ["http://host:8501", "https://host/prefix"])
def test_a_url_is_a_target_of_rest_alone(url):
    CTRClient(url, protocol="rest").close()
    refusal(lambda: CTRClient(url))


def test_an_unknown_protocol():
    assert refusal(lambda: CTRClient("h:1", protocol="soap")) == (
        "protocol: expected 'grpc' or 'rest'. Received: 'soap'"
    )


@both_protocols
def test_arguments_that_exclude_each_other(protocol):
    assert "one of both" in refusal(lambda: CTRClient("h:1", protocol=protocol, version=1, label="a"))
    assert "h:1 is another machine" in refusal(lambda: CTRClient("h:1", protocol=protocol, token="t"))
    assert "https:// with it" in refusal(lambda: CTRClient("http://h:1", protocol="rest", tls=True))


@both_protocols
@pytest.mark.parametrize(
    "options",
    [{"timeout": NAN}, {"timeout": INF}, {"timeout": -1}, {"timeout": "5"}, {"timeout": None}, {"timeout": True},
     {"version": "1"}, {"version": -1}, {"version": True}, {"version": 1.5}],
)  # fmt: skip
def test_waiting_for_what_does_not_fit_is_refused_alike(protocol, options):
    """`mlet-tf predict --wait nan` comes here."""
    words = f"{next(iter(options))}: expected "
    with CTRClient("127.0.0.1:1", protocol=protocol) as client:
        assert refusal(lambda: client.wait_until_ready(**options)).startswith(words)

    async def main():
        async with AsyncCTRClient("127.0.0.1:1", protocol=protocol) as client:
            await client.wait_until_ready(**options)

    assert refusal(lambda: asyncio.run(main())).startswith(words)


@both_protocols
def test_numbers_of_numpy_are_numbers(protocol):
    CTRClient(
        "127.0.0.1:1", protocol=protocol, timeout=np.float32(2), retries=np.int64(1), version=np.int32(0),
        max_batch=np.int64(8), max_concurrency=np.int64(2), backoff=0,
    ).close()  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host:8501", Target("host", 8501)),
        ("a-b_c.d.:1", Target("a-b_c.d.", 1)),
        ("10.0.0.1:65535", Target("10.0.0.1", 65535)),
        ("[fe80::1%eth0]:8501", Target("fe80::1%eth0", 8501)),
        ("http://host", Target("host", 80, encrypted=False)),
        ("https://host/a/b%20c/", Target("host", 443, "/a/b%20c", encrypted=True)),
        ("https://[::1]:8501/", Target("::1", 8501, encrypted=True)),
    ],
)
def test_what_a_target_says(text, expected):
    assert Target.parse(text, "rest") == expected


@given(st.text(st.sampled_from("ab1.:/[]@?# -%\t"), max_size=12) | st.text(max_size=8))
def test_a_target_is_read_back_as_it_was_or_refused(text):
    for protocol in ("grpc", "rest"):
        try:
            target = Target.parse(text, protocol)
        except InputError:
            continue
        assert 1 <= target.port <= 65535
        assert target.encrypted is not None or str(target) == text
        assert Target.parse(target.address, protocol).host == target.host
