import asyncio
import ssl
import subprocess
import sys
import threading
from http.server import HTTPServer

import grpc
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fake_servers import Answering
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.convert import arrow_schema, convert
from mlet_tf.errors import InputError
from mlet_tf.serving import (
    AsyncCTRClient,
    CTRClient,
    LocalServer,
    ServeOptions,
    ServingError,
    Tls,
    push,
)
from mlet_tf.serving.rows import Rows

SCHEMA = ClickLogSchema(
    name="little",
    label="label",
    integers=("I1",),
    categoricals=("C1",),
    time=None,
    drop=("id",),
    columns=("label", "I1", "id", "C1"),
    separator="\t",
    header=False,
    missing=("", "NA"),
)
ROWS = [{"I1": 7, "C1": "ab"}, {"C1": "x"}, {"I1": -3}, {"I1": None, "C1": None}, {}]
EXPECTED = 1 / (1 + np.exp(-np.array([0.7 + 2, 1.0, -0.3, 0.0, 0.0])))


TEXTS = (
    st.sampled_from(
        ["", "NA", " ", "x", "a\0", "\ud800", "\udcff", "7\n", "\u0667", "\u00a07", "1_0", "1e3", "7.0"]
    )
    | st.sampled_from(
        ["0x7", "0X1f", "-0x7", "0x", " 7\t", "+7", "-0", "007", "9" * 20, "0x" + "f" * 16, "0" * 101]
    )
    | st.integers(-(2**63), 2**63).map(str)
    | st.integers(0, 2**64).map(hex)
    | st.text(max_size=4)
)
BYTES = TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.just(b"\xff")
INTEGERS = st.integers(-(2**63), 2**63 - 1)
COLUMN = st.one_of(
    *(st.lists(st.none() | cells, max_size=4) for cells in (TEXTS, BYTES, INTEGERS, TEXTS | BYTES | INTEGERS))
)


def ingested(column, cell):
    """What the pipeline's reader makes of a cell, None for a missing value; raises ValueError if nothing."""
    if not isinstance(cell, str | bytes):
        return cell if column == "I1" or cell is None else str(cell).encode()
    text = cell if isinstance(cell, bytes) else cell.encode()
    text.decode()
    wanted = arrow_schema(SCHEMA, (column,))
    (values,), bad = convert(pa.table({column: pa.array([text], pa.binary())}), wanted, SCHEMA)
    if bad:
        raise ValueError
    return values[0].as_py()


@settings(max_examples=150)
@given(COLUMN, COLUMN)
def test_few_rows_and_many_are_read_as_the_pipeline_reads_its_logs(integers, categories):
    import tensorflow as tf

    columns = {"I1": integers, "C1": categories, "id": [b"\xff"]}
    count = max(map(len, columns.values()))
    rows = [{name: cells[n] for name, cells in columns.items() if n < len(cells)} for n in range(count)]
    expected = [{} for _ in rows]
    bad = []
    for name in ("I1", "C1"):
        for n, cell in enumerate(columns[name]):
            try:
                expected[n][name] = ingested(name, cell)
            except ValueError:
                bad.append(f"row {n}: column {name!r} should be ")
    for sent in (rows, rows + [{}] * 100):
        if bad:
            with pytest.raises(InputError) as caught:
                Rows(sent, SCHEMA)
            assert str(caught.value).startswith(bad[0])
            continue
        examples = Rows(sent, SCHEMA).examples
        assert len(examples) == len(sent)
        for example, row in zip(examples, expected + [{}] * 100, strict=False):
            features = tf.train.Example.FromString(example).features.feature
            found = {name: [*f.int64_list.value, *f.bytes_list.value] for name, f in features.items()}
            assert found == {name: [value] for name, value in row.items() if value is not None}


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_model):
    folder = tmp_path_factory.mktemp("client")
    write_model.raw(folder / "model")
    push(folder / "model", folder / "ctr")
    push(folder / "model", folder / "ctr")
    return folder / "ctr"


@pytest.fixture(scope="module")
def server(base, serving):
    with serving(model_base_path=str(base), max_batch_size=1500) as running:
        yield running


def address(server, protocol):
    return f"127.0.0.1:{server.port if protocol == 'grpc' else server.rest_api_port}"


@pytest.fixture(params=["grpc", "rest"])
def client(request, server):
    with CTRClient(
        address(server, request.param), protocol=request.param, schema=SCHEMA, timeout=300
    ) as made:
        yield made


FORMS = {
    "dicts": ROWS,
    "texts": [
        {"I1": "0x7", "C1": b"ab"},
        {"C1": "x", "I1": "NA"},
        {"I1": -3.0, "C1": ""},
        {"I1": float("nan")},
        {},
    ],
    "frame": pd.DataFrame({"C1": ["ab", "x", None, None, None], "I1": [7, None, -3, None, None], "label": 0}),
    "mixed frame": pd.DataFrame(
        {"C1": ["ab", b"x", None, np.nan, None], "I1": ["7", "NA", -3, None, np.nan]}
    ),
    "extension types": pd.DataFrame(
        {
            "C1": pd.array(["ab", "x", pd.NA, pd.NA, pd.NA], "string"),
            "I1": pd.array([7, pd.NA, -3, pd.NA, pd.NA], "Int64"),
        }
    ),
    "numpy scalars": [
        {"I1": np.int32(7), "C1": np.str_("ab")},
        {"C1": "x", "I1": np.float32("nan")},
        {"I1": np.float64(-3)},
        {},
        {},
    ],
    "table": pa.table(
        {"I1": pa.array([7, None, -3, None, None], pa.int32()), "C1": ["ab", "x", "NA", None, ""]}
    ),
    "dictionary": pa.table(
        {"I1": ["7", None, "-3", "", "NA"], "C1": pa.array(["ab", "x", None, None, None]).dictionary_encode()}
    ),
    "lines": ["1\t7\tq\tab", "0\tNA\tq\tx\n", b"0\t-3\t\t", "\tq\t", "\t\t"],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_answers_for_rows_in_any_form(client, form):
    answer = client.predict(FORMS[form])
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, EXPECTED, rtol=1e-6)


def test_many_rows_are_split_and_stay_in_order(server):
    rows = [{"I1": i % 50} for i in range(2500)]
    expected = 1 / (1 + np.exp(-0.1 * (np.arange(2500) % 50)))
    for protocol in ("grpc", "rest"):
        with CTRClient(address(server, protocol), protocol=protocol, max_batch=600) as client:
            np.testing.assert_allclose(client.predict(rows), expected, rtol=1e-6)
            assert client.predict([]).shape == (0,)


def test_a_request_beyond_the_servers_limit_is_refused_as_a_whole(server):
    if server.real:
        pytest.skip("a real server has no such limit unless it batches")
    with CTRClient(address(server, "grpc"), max_batch=2000) as client:
        with pytest.raises(ServingError, match="Task size 1600 is larger than maximum") as caught:
            client.predict([{}] * 1600)
        assert caught.value.row is None
        assert client.predict([{}] * 1500).shape == (1500,)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize("at", [0, 1, 612, 699])
def test_the_row_that_the_server_refuses_is_named(server, protocol, at):
    rows = [{"I1": 1, "C1": "a"} for _ in range(700)]
    rows[at] = {"I1": 1, "C1": "a", "zz": "fine"}
    with CTRClient(address(server, protocol), protocol=protocol, max_batch=512) as client:
        assert len(client.predict(rows)) == 700
        # Sent as text, since there is no schema; the model wants an integer.
        for other in rows:
            other["I1"] = "1" if other is rows[at] else None
        with pytest.raises(ServingError, match="Data types don't match") as caught:
            client.predict(rows)
    assert caught.value.row == at
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "'zz': 'fine'" in str(caught.value)
    assert str(caught.value).startswith(f"row {at}: INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"I1": 1}, {"I1": "x"}], "row 1: column 'I1' should be an integer or missing. Received: 'x'"),
        ([{"I1": 1.5}], "row 0: column 'I1' should be an integer or missing. Received: 1.5"),
        ([{"I1": 2**63}], "row 0: column 'I1' should be an integer"),
        ([{"I1": "9" * 20}], "row 0: column 'I1' should be an integer"),
        (
            [{"I1": 1}] * 150 + [{"I1": "1_0"}],
            "row 150: column 'I1' should be an integer or missing. Received: '1_0'",
        ),
        ([{"C1": ["a"]}], "row 0: column 'C1' should be UTF-8 text without a NUL byte or missing"),
        ([{"C2": "a"}], "columns: expected names of schema 'little' (I1, C1). Received: 'C2'"),
        (["1\t2\t3"], None),
        (["1\t2"], "row 0: expected 4 columns, or 3 without the label. Received: 2"),
        ({"I1": 1}, "rows: expected a list of dicts or of lines"),
        ("line", "rows: expected a list of dicts or of lines"),
        ([1], "row 0: expected a dict or a line. Received: int"),
        (
            ["\t\t", b"7\tq\t\xff"],
            "row 1: column 'C1' should be UTF-8 text without a NUL byte or missing. Received: b'\\xff'",
        ),
        (
            pd.DataFrame([[1, 2]], columns=["I1", "I1"]),
            "columns: expected each name once. Received: 'I1' 2 times",
        ),
        (
            pa.table([["a"], ["b"]], names=["C1", "C1"]),
            "columns: expected each name once. Received: 'C1' 2 times",
        ),
        (pd.DataFrame({"I1": [2**70]}), "row 0: column 'I1' should be an integer"),
        (pd.DataFrame({"C1": ["\ud800"]}), "row 0: column 'C1' should be UTF-8 text"),
        (pd.Series([1]), "rows: expected a list of dicts or of lines, a pandas frame or an Arrow table"),
    ],
)
def test_rows_that_do_not_fit_are_not_sent(server, rows, words):
    with CTRClient(address(server, "rest"), protocol="rest", schema=SCHEMA) as client:
        if words is None:
            client.predict(rows)
        else:
            with pytest.raises(InputError) as caught:
                client.predict(rows)
            assert words in str(caught.value)


def test_status_metadata_versions_and_readiness(client, server):
    assert client.status() == {2: "AVAILABLE"}
    metadata = client.metadata()
    assert metadata["serving_default"] == {
        "inputs": {"examples": ("string", [-1])},
        "outputs": {"ctr": ("float", [-1])},
    }
    client.wait_until_ready(timeout=300)
    client.wait_until_ready(2, timeout=300)
    with pytest.raises(ServingError, match=r"version 7 is not ready at .* after 0.2 s"):
        client.wait_until_ready(7, timeout=0.2)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_errors_carry_the_servers_words(server, protocol):
    target = address(server, protocol)
    cases = [
        ({"version": 9}, "NOT_FOUND", "Servable not found for request: Specific(ctr, 9)"),
        ({"label": "beta"}, "INVALID_ARGUMENT", "Unrecognized servable version label: beta"),
        ({"model_name": "a/b"}, "NOT_FOUND", "Servable not found for request: Latest(a/b)"),
    ]
    for options, code, words in cases:
        with CTRClient(target, protocol=protocol, **options) as client:
            for rows in ([{}], [{"I1": 1}, {}, {"C1": "a"}]):
                with pytest.raises(ServingError) as caught:
                    client.predict(rows)
                assert (caught.value.code, caught.value.details) == (code, words)
                assert caught.value.row is None  # It is no row's fault.


def test_token_and_tls(flaky, tmp_path, server, certificate):
    certificate, key = certificate
    pair = (key.read_bytes(), certificate.read_bytes())
    service, target = flaky(credentials=grpc.ssl_server_credentials([pair]))
    tokens = iter(["one", "two"])
    tls = Tls(ca=certificate, server_name="models.example")
    with CTRClient(target, tls=tls, token=lambda: next(tokens)) as client:
        client.predict([{}])
        client.predict([{}])
    assert [seen[1]["authorization"] for seen in service.seen] == ["Bearer one", "Bearer two"]
    with (
        CTRClient(target, tls=tls, token="secret\n") as client,
        pytest.raises(InputError, match="token: expected printable"),
    ):
        client.predict([{}])
    with CTRClient(target, tls=True, retries=0) as client, pytest.raises(ServingError, match="UNAVAILABLE"):
        client.predict([{}])
    with pytest.raises(InputError, match="tls: cannot read"):
        CTRClient(target, tls=Tls(ca=tmp_path / "absent.pem"))

    options = ServeOptions(
        model_base_path=server.options.model_base_path,
        port=0,
        rest_api_port=None,
        tls_key=str(key),
        tls_certificate=str(certificate),
    )
    with LocalServer(options) as secure, CTRClient(address(secure, "grpc"), tls=tls, schema=SCHEMA) as client:
        np.testing.assert_allclose(client.predict(ROWS), EXPECTED, rtol=1e-6)

    class Handler(Answering):
        def reply(self, _):
            seen.append((self.path, self.headers["Authorization"]))
            self.close_connection = True
            return 200, '{"outputs": [0.25]}'

    seen = []
    https = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    https.socket = context.wrap_socket(https.socket, server_side=True)
    threading.Thread(target=https.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{https.server_address[1]}/gateway"
    with CTRClient(url, protocol="rest", tls=tls, token="t") as client:
        assert client.predict([{}]).tolist() == [0.25]
    assert seen == [("/gateway/v1/models/ctr:predict", "Bearer t")]
    https.shutdown()
    https.server_close()


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_asyncio(server, protocol):
    async def main():
        target = address(server, protocol)
        async with AsyncCTRClient(target, protocol=protocol, schema=SCHEMA) as client:
            await client.wait_until_ready(timeout=300)
            assert await client.status() == {2: "AVAILABLE"}
            assert "serving_default" in await client.metadata()
            answers = await asyncio.gather(*(client.predict(ROWS[: n % 5 + 1]) for n in range(20)))
            for n, answer in enumerate(answers):
                np.testing.assert_allclose(answer, EXPECTED[: n % 5 + 1], rtol=1e-6)
        async with AsyncCTRClient(target, protocol=protocol) as client:
            with pytest.raises(ServingError) as caught:
                await client.predict([{"C1": "a"}, {"I1": "x"}])
            assert caught.value.row == 1

    asyncio.run(main())


def test_rest_needs_no_tensorflow(server):
    script = f"""
import sys
sys.argv[0] = "mlet-tf"
from mlet_tf.serving import CTRClient
with CTRClient({address(server, "rest")!r}, protocol="rest") as client:
    client.wait_until_ready()
    print(float(client.predict([{{"I1": 7, "C1": "ab"}}])[0]))
print([name for name in ("tensorflow", "keras", "grpc") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    value, modules = run.stdout.splitlines()
    assert float(value) == pytest.approx(EXPECTED[0], rel=1e-6)
    assert modules == "[]"
