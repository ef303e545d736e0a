"""Rows and answers stay aligned on every way into the client, with the label and without it."""

import asyncio
import csv
import io

import pandas as pd
import pyarrow as pa
import pytest
from fake_servers import Answering, predict_response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.serving import AsyncCTRClient, CTRClient, ServingError
from mlet_tf.serving.rows import Rows

SCHEMA = ClickLogSchema(
    name="little",
    label="click",
    integers=("I1",),
    categoricals=("C1",),
    time=None,
    drop=(),
    columns=("click", "I1", "C1"),
    separator="\t",
    header=False,
    missing=("",),
)


def lines_of(rows, labelled):
    names = SCHEMA.columns if labelled else SCHEMA.columns[1:]
    return [
        "\t".join("" if row.get(name) is None else str(row[name]) for name in names) + "\n" for row in rows
    ]


def columns_of(rows, labelled):
    names = SCHEMA.columns if labelled else SCHEMA.columns[1:]
    return {name: [row.get(name) for row in rows] for name in names}


def dicts_of(rows, labelled):
    return [{name: value for name, value in row.items() if labelled or name != "click"} for row in rows]


def csv_of(rows, labelled):
    written = io.StringIO()
    names = SCHEMA.columns if labelled else SCHEMA.columns[1:]
    writer = csv.DictWriter(written, names)
    writer.writeheader()
    writer.writerows(dicts_of(rows, labelled))
    return csv.DictReader(io.StringIO(written.getvalue()))


TYPES = {"click": pa.int64(), "I1": pa.int64(), "C1": pa.string()}
FORMS = {
    "dicts": dicts_of,
    "generator": lambda *rows: iter(dicts_of(*rows)),
    "csv.DictReader": csv_of,
    "frame": lambda *rows: pd.DataFrame(columns_of(*rows)),
    "sorted frame": lambda *rows: pd.DataFrame(columns_of(*rows)).set_axis([7] * len(rows[0])),
    "table": lambda *rows: pa.table({n: pa.array(c, TYPES[n]) for n, c in columns_of(*rows).items()}),
    "chunked table": lambda *rows: pa.concat_tables([FORMS["table"]([row], rows[1]) for row in rows[0]]),
    "batch": lambda *rows: FORMS["table"](*rows).combine_chunks().to_batches()[0],
    "lines": lines_of,
    "bytes": lambda *rows: [line.encode() for line in lines_of(*rows)],
    "file": lambda *rows: io.StringIO("".join(lines_of(*rows))),
    "binary file": lambda *rows: io.BytesIO("".join(lines_of(*rows)).encode()),
}
ROW = st.fixed_dictionaries(
    {
        "click": st.integers(0, 1),
        "I1": st.none() | st.integers(-9, 9),
        "C1": st.none() | st.text("ab", min_size=1),
    }
)

both_protocols = pytest.mark.parametrize("protocol", ["grpc", "rest"])


@both_protocols
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, min_size=1, max_size=8))
def test_each_row_gets_its_own_answer_in_every_form(asked, protocol, labelled, rows):
    expected = [float(len(Rows([row], SCHEMA).examples[0])) for row in rows]
    for name, form in FORMS.items():
        assert asked[protocol].predict(form(rows, labelled)).tolist() == expected, name


@pytest.fixture
def asked(busy):
    """Clients of a server that answers a row with the length of its example."""
    with (
        CTRClient(busy("grpc")[1], schema=SCHEMA, max_batch=3, timeout=300) as over_grpc,
        CTRClient(busy("rest")[1], schema=SCHEMA, max_batch=3, timeout=300, protocol="rest") as over_rest,
    ):
        yield {"grpc": over_grpc, "rest": over_rest}


def test_asyncio_takes_the_same_forms(busy):
    target, rows = busy("grpc")[1], [{"I1": n, "C1": "x" * n} for n in range(1, 6)]

    async def main():
        async with AsyncCTRClient(target, schema=SCHEMA, max_batch=2, timeout=300) as client:
            return await asyncio.gather(*(client.predict(form(rows, False)) for form in FORMS.values()))

    expected = [float(len(Rows([row], SCHEMA).examples[0])) for row in rows]
    assert [answer.tolist() for answer in asyncio.run(main())] == [expected] * len(FORMS)


@both_protocols
@pytest.mark.parametrize("at", [0, 4, 149])
@pytest.mark.parametrize("form", ["dicts", "generator", "frame", "table", "lines", "binary file"])
def test_a_malformed_row_stops_the_call_with_its_place(busy, protocol, at, form):
    """No row is left out and nothing is sent: the first batches have not gone before the bad row is seen."""
    rows = [{"click": "0", "I1": "5", "C1": "a"} for _ in range(150)]
    rows[at]["I1"] = "five"
    if form == "table":
        sent = pa.table({name: [row[name] for row in rows] for name in SCHEMA.columns})
    else:
        sent = FORMS[form](rows, True)
    model, target = busy(protocol)
    with (
        CTRClient(target, protocol=protocol, schema=SCHEMA, max_batch=2) as client,
        pytest.raises(InputError, match=rf"^row {at}: column 'I1' should be an integer or missing"),
    ):
        client.predict(sent)
    assert model.asked == 0


@pytest.mark.parametrize("line", ["", "1\t2\ta\tb"])
def test_a_line_of_too_few_or_too_many_columns_stops_the_call_with_its_place(busy, line):
    model, target = busy("rest")
    with (
        CTRClient(target, protocol="rest", schema=SCHEMA, max_batch=1) as client,
        pytest.raises(InputError, match=r"^row 2: expected 3 columns, or 2 without the label"),
    ):
        client.predict(iter(["0\t1\ta\n", "2\tb\n", f"{line}\n", "3\tc\n"]))
    assert model.asked == 0


@both_protocols
def test_a_server_that_answers_too_few_rows_is_not_believed(protocol, grpc_server, http_server):

    class Handler(Answering):
        def reply(self, _):
            return 200, '{"outputs": [0.5]}'

    target = http_server(Handler) if protocol == "rest" else grpc_server(lambda *_: predict_response([0.5]))
    with (
        CTRClient(target, protocol=protocol) as client,
        pytest.raises(ServingError, match="INTERNAL: 2 rows were sent, 1 CTRs came back"),
    ):
        client.predict([{}, {}])
