"""ClickLogExampleGen: no row is lost, splits do not depend on how files are cut, and mistakes are said clearly."""

import collections
import dataclasses
import gzip
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import mlet_tf.components.beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from mlet_tf.components.click_log_example_gen import ClickLogExampleGen
from mlet_tf.components.click_log_example_gen.config import from_proto, to_proto
from tests_support import run_example_gen as ingest
from tfx.components import FileBasedExampleGen
from tfx.orchestration import metadata
from tfx.proto import example_gen_pb2
from tfx.utils import proto_utils
from tfx.v1 import dsl, orchestration

from mlet_tf.datasets import AVAZU, CRITEO, ClickLogSchema, TimeColumn
from mlet_tf.datasets.reading import read_log
from mlet_tf.errors import InputError
from mlet_tf.features.ingestion import IngestConfig, count_rows, read_ingest_report, shards
from mlet_tf.features.records import count_records, example_batches

TINY = ClickLogSchema(
    name="tiny",
    label="y",
    integers=("i",),
    categoricals=("c",),
    time=TimeColumn("t", "unix_seconds"),
    drop=(),
    columns=("y", "i", "t", "c"),
    separator="\t",
    header=True,
    missing=("",),
)
ROWS = 3000


def lines_of(first=0, rows=ROWS):
    """Rows told apart by `i`, of which every seventh is missing; the time grows by a second a row."""
    for n in range(first, first + rows):
        yield f"{n % 2}\t{n if n % 7 else ''}\t{1_000_000 + n}\tcat{n}"


def write_lines(path, lines, header=True):
    text = "\n".join(["y\ti\tt\tc"] * header + list(lines)) + "\n"
    Path(path).write_bytes(gzip.compress(text.encode()) if str(path).endswith(".gz") else text.encode())
    return str(path)


def rows_of(uri, split):
    """Rows of a split as dictionaries, in no order."""
    files = sorted(str(path) for path in Path(uri, f"Split-{split}").iterdir())
    rows = []
    for record in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        rows.append({k: (*v.int64_list.value, *v.bytes_list.value) for k, v in sorted(features.items())})
    return rows


def names_of(uri, split):
    return collections.Counter(row["c"][0].decode() for row in rows_of(uri, split))


def message_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


@pytest.fixture(scope="session")
def hashed(tmp_path_factory):
    """A log of two files, split by hash."""
    folder = tmp_path_factory.mktemp("hashed")
    (folder / "log").mkdir()
    write_lines(folder / "log" / "a.tsv", lines_of(0, 2000))
    write_lines(folder / "log" / "b.tsv", lines_of(2000, 1000))
    return folder, ingest(folder / "out", TINY, folder / "log", eval_share=0.25)


def test_every_row_comes_out_once_with_its_values(hashed):
    _, examples = hashed
    rows = rows_of(examples.uri, "train") + rows_of(examples.uri, "eval")
    assert sorted(int(row["c"][0][3:]) for row in rows) == list(range(ROWS))
    for row in rows:
        n = int(row["c"][0][3:])
        expected = {"y": (n % 2,), "t": (1_000_000 + n,), "c": (b"cat%d" % n,)}
        assert row == (expected | {"i": (n,)} if n % 7 else expected)


def test_the_counts_are_recorded(hashed):
    _, examples = hashed
    rows = count_rows(examples.uri)
    report = read_ingest_report(examples.uri)
    assert report["rows"] == {"read": ROWS, "rejected": 0, **rows}
    assert sum(rows.values()) == ROWS
    assert abs(rows["eval"] / ROWS - 0.25) < 0.04
    assert {name: examples.get_int_custom_property(f"rows_{name}") for name in report["rows"]} == report[
        "rows"
    ]
    assert not Path(examples.uri, "staging").exists()


def test_tfx_reads_the_artifact_as_its_own(hashed):
    _, examples = hashed
    assert json.loads(examples.split_names) == ["train", "eval"]
    assert examples.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    assert isinstance(ClickLogExampleGen(TINY, "x"), FileBasedExampleGen)


@pytest.mark.parametrize("chunk_bytes", [5000, 20_000])
def test_the_split_does_not_depend_on_the_size_of_chunks(hashed, tmp_path, chunk_bytes):
    folder, examples = hashed
    other = ingest(tmp_path, TINY, folder / "log", eval_share=0.25, chunk_bytes=chunk_bytes)
    assert read_ingest_report(other.uri)["chunks"] > 2
    for split in ("train", "eval"):
        assert names_of(other.uri, split) == names_of(examples.uri, split)


def test_the_split_does_not_depend_on_compression_but_on_the_seed(hashed, tmp_path):
    folder, examples = hashed
    (tmp_path / "log").mkdir()
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / "log" / f"{name}.gz").write_bytes(gzip.compress((folder / "log" / name).read_bytes()))
    zipped = ingest(tmp_path / "zipped", TINY, f"{tmp_path}/log/", eval_share=0.25)
    assert names_of(zipped.uri, "eval") == names_of(examples.uri, "eval")
    seeded = ingest(tmp_path / "seeded", TINY, folder / "log", eval_share=0.25, seed=1)
    assert names_of(seeded.uri, "eval") != names_of(examples.uri, "eval")


def test_parquet_gives_the_same_rows(hashed, tmp_path):
    folder, examples = hashed
    table = pa.concat_tables(read_log(str(folder / "log"), TINY))
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=500)
    other = ingest(tmp_path / "out", TINY, tmp_path / "log.parquet", eval_share=0.25, chunk_bytes=5000)
    assert read_ingest_report(other.uri)["chunks"] > 2

    def all_rows(uri):
        return sorted(rows_of(uri, "train") + rows_of(uri, "eval"), key=str)

    assert all_rows(other.uri) == all_rows(examples.uri)


def test_reading_agrees_with_tensorflow_and_notices_damage(tmp_path):
    path = tmp_path / "shard.gz"
    records = [b"x" * n for n in (0, 1, 300_000, 7)] * 20
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for record in records:
            writer.write(record)
    assert count_records(str(path)) == 80
    batches = list(example_batches([str(path)] * 2, 50))
    assert [len(batch) for batch in batches] == [50, 50, 50, 10]
    assert list(itertools.chain.from_iterable(batches)) == records * 2
    assert list(tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator()) == records
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b"", whole + b"x"):
        path.write_bytes(damaged)
        assert f"The shard {path} is damaged" in message_of(lambda: count_records(str(path)))


def test_large_shards_are_divided(hashed, tmp_path, monkeypatch):
    folder, _ = hashed
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1)
    monkeypatch.setattr("mlet_tf.datasets.reading.read_chunk.__defaults__", (None, 4096, 1 << 20))
    examples = ingest(tmp_path, TINY, folder / "log")
    report = read_ingest_report(examples.uri)
    assert report["shards"]["train"] > report["chunks"]
    assert sum(count_rows(examples.uri).values()) == ROWS


@pytest.mark.parametrize("cut", [None, 1_002_500])
def test_a_split_by_time_trains_on_the_earlier_rows(tmp_path, cut):
    lines = list(lines_of())
    log = write_lines(tmp_path / "log.tsv", lines[1::2] + lines[::2])
    examples = ingest(tmp_path / "out", TINY, log, method="time", eval_share=0.1, cut=cut, chunk_bytes=9000)
    first_eval = 2700 if cut is None else 2500
    assert names_of(examples.uri, "train") == {f"cat{n}": 1 for n in range(first_eval)}
    assert names_of(examples.uri, "eval") == {f"cat{n}": 1 for n in range(first_eval, ROWS)}
    assert read_ingest_report(examples.uri)["cut"] == 1_000_000 + first_eval


def test_given_files_are_the_splits(tmp_path):
    (tmp_path / "evaluation").mkdir()
    train = write_lines(tmp_path / "train.tsv", lines_of(0, 50))
    evaluation = write_lines(tmp_path / "evaluation" / "x.tsv.gz", lines_of(50, 20))
    examples = ingest(tmp_path / "out", TINY, train, evaluation, method="files")
    assert names_of(examples.uri, "train") == {f"cat{n}": 1 for n in range(50)}
    assert names_of(examples.uri, "eval") == {f"cat{n}": 1 for n in range(50, 70)}


def test_rejects_are_written_with_file_line_and_reason(tmp_path):
    lines = list(lines_of())
    for n in (10, 1500, 2999):
        lines[n] = f"{n % 2}\tseven\t5\tx"
    log = write_lines(tmp_path / "log.tsv", lines)
    examples = ingest(tmp_path / "out", TINY, log, max_reject_share=0.001, chunk_bytes=10_000)
    found = [
        json.loads(line)
        for path in sorted(Path(examples.uri, "rejects").iterdir())
        for line in path.read_text().splitlines()
    ]
    reason = "column 'i' should be an integer. Received: 'seven'"
    assert found == [
        {"file": log, "line": n + 2, "reason": reason, "text": f"{n % 2}\tseven\t5\tx"}
        for n in (10, 1500, 2999)
    ]
    rows = read_ingest_report(examples.uri)["rows"]
    assert (rows["read"], rows["rejected"], rows["train"] + rows["eval"]) == (ROWS, 3, ROWS - 3)


def test_too_many_rejects_fail_the_run_with_the_first_ten(tmp_path):
    lines = list(lines_of())
    lines[5:2000:100] = ["2\t1\t5\tx"] * 20
    log = write_lines(tmp_path / "log.tsv", lines)
    text = message_of(lambda: ingest(tmp_path / "out", TINY, log, chunk_bytes=10_000))
    assert text.startswith("20 of 3000 rows were rejected (0.67%); allowed is a share of 0.10%.")
    shown = text.splitlines()[1:]
    assert shown == [f"  {log}:{n}: column 'y' should be 0 or 1. Received: '2'" for n in range(7, 1000, 100)]
    assert not list(Path(tmp_path, "out").glob("Split-*"))


def test_a_column_that_the_schema_drops_names_the_split(tmp_path):
    schema = dataclasses.replace(TINY, drop=("part",), columns=("y", "i", "t", "c", "part"))
    parts = ["train", "old", "test", "train"]
    lines = [f"{line}\t{parts[n % 4]}" for n, line in enumerate(lines_of())]
    lines[7] = "2\t7\t1000007\tcat7\tnone of them"  # A row that is rejected needs no part.
    log = tmp_path / "log.tsv"
    log.write_text("\n".join(["y\ti\tt\tc\tpart", *lines]) + "\n")

    def run(folder, train):
        lists = {"train": train, "eval": ["test"]}
        options = {"method": "column", "column": "part", "parts": lists, "chunk_bytes": 9000}
        return ingest(tmp_path / folder, schema, log, **options)

    examples = run("out", ["train", "old"])
    assert count_rows(examples.uri) == {"train": 2249, "eval": 750}
    for split, numbers in (("train", {0, 1, 3}), ("eval", {2})):
        rows = rows_of(examples.uri, split)
        assert {int(row["c"][0].removeprefix(b"cat")) % 4 for row in rows} == numbers
        assert all(set(row) <= {"y", "i", "t", "c"} for row in rows), "it is no feature"
    message = message_of(lambda: run("unlisted", ["train"]))
    assert (
        message == "'data.split.parts' should list all values of column 'part'. Received: 'old' in 750 rows"
    )


def test_what_cannot_be_split_or_read_is_said(tmp_path):
    def fails(name, lines, **kwargs):
        log = write_lines(tmp_path / name, lines)
        return message_of(lambda: ingest(tmp_path / f"{name}.out", TINY, log, **kwargs))

    few = list(lines_of(0, 3))
    assert "Split 'train' should have at least one row. Received: 0 rows read" in fails("none.tsv", [])
    assert (
        "Split 'eval' should have at least one row. Received: 3 rows read, 0 rejected, split by hash"
        in fails("few.tsv", few, eval_share=1e-6)
    )
    assert "Split 'eval' should have at least one row" in fails("late.tsv", few, method="time", cut=10**9)
    assert "rows of different times. Received: 1000000 in all rows" in fails(
        "one.tsv", few[:1] * 9, method="time"
    )
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(Path(write_lines(tmp_path / "whole.gz", lines_of(0, 60_000))).read_bytes()[:-20_000])
    for method in ("hash", "time"):
        text = message_of(lambda m=method: ingest(tmp_path / f"d-{m}", TINY, damaged, method=m))
        assert f"{damaged} is a damaged gzip file" in text
    assert "No file found at" in message_of(lambda: ingest(tmp_path / "n", TINY, tmp_path / "gone-*"))
    (tmp_path / "file").write_text("")
    log = write_lines(tmp_path / "good.tsv", few)
    assert "cannot be made" in message_of(lambda: ingest(tmp_path / "file" / "out", TINY, log))


def test_a_log_of_which_every_row_is_rejected_has_no_rows_left(tmp_path):
    log = write_lines(tmp_path / "log.tsv", ["2\t1\t5\tx"] * 50)
    text = message_of(lambda: ingest(tmp_path / "out", TINY, log, max_reject_share=1))
    assert "Split 'train' should have at least one row. Received: 50 rows read, 50 rejected" in text


@pytest.mark.slow
def test_a_line_of_a_gigabyte_is_one_reject_and_costs_no_memory(tmp_path):
    log = tmp_path / "log.tsv"
    write_lines(log, lines_of(0, 1000))
    with log.open("ab") as file:
        for _ in range(1024):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + "\n".join(lines_of(1000, 1000)).encode())
    script = (
        "import resource, sys; from tests_support import run_example_gen; from test_click_log_example_gen import TINY;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10; before = peak();"
        "run_example_gen(sys.argv[1], TINY, sys.argv[2]); print(peak() - before)"
    )
    folders = [Path(__file__).parents[1], Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(log)]
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert int(printed.split()[-1]) < 400 << 20
    rows = read_ingest_report(str(tmp_path / "out"))["rows"]
    assert (rows["read"], rows["rejected"]) == (2001, 1)


def test_a_full_disk_is_said_and_leaves_no_split(tmp_path):
    log = write_lines(
        tmp_path / "log.tsv", (f"1\t{n}\t5\t{n * 7919 % 100_003:x}{n:x}" for n in range(40_000))
    )
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old_limit[1]))
    try:
        text = message_of(lambda: ingest(tmp_path / "out", TINY, log))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert f"Examples cannot be written to {tmp_path}/out/staging" in text
    assert not list(Path(tmp_path, "out").glob("Split-*"))


def test_a_lost_chunk_and_a_lost_record_are_noticed(hashed, tmp_path, monkeypatch):
    folder, _ = hashed
    run_task = mlet_tf.components.beam._run_task

    def lose_one(numbered, **kwargs):
        return None if numbered[0] == 1 else run_task(numbered, **kwargs)

    monkeypatch.setattr(mlet_tf.components.beam, "_run_task", lose_one)
    with pytest.raises(RuntimeError, match=r"There is no result for chunk 1 of .*b\.tsv: Beam lost it"):
        ingest(tmp_path / "chunk", TINY, folder / "log")
    monkeypatch.undo()
    monkeypatch.setattr(
        shards._ShardWriter, "write", lambda self, records, w=shards._ShardWriter.write: w(self, records[1:])
    )
    with pytest.raises(RuntimeError, match="rows were written to split 'train'"):
        ingest(tmp_path / "record", TINY, folder / "log")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"method": "random"}, "`method` should be one of hash, time, files, column. Received: 'random'"),
        ({"eval_share": 1.5}, "`eval_share` should be between 0 and 1. Received: 1.5"),
        ({"cut": 5}, "`cut` should be given for method 'time' only"),
        ({"method": "files"}, "`eval` and method 'files' go together"),
        ({"eval": "x"}, "`eval` and method 'files' go together"),
        ({"max_reject_share": -1}, "`max_reject_share` should be from 0 to 1"),
        ({"chunk_bytes": 0}, "`chunk_bytes` should be at least 1"),
        ({"schema": CRITEO, "method": "time"}, "Schema 'criteo' has none"),
        (
            {"column": "c"},
            "`column`, `parts` of train and eval, and method 'column' go together. Received: 'c'",
        ),
        ({"method": "column", "column": "c"}, "go together. Received: 'c', parts of [], method 'column'"),
        (
            {"method": "column", "column": "cc", "parts": {"train": ["a"], "eval": ["b"]}},
            "'column' should be a column of schema 'tiny' other than its label. Received: 'cc'. Did you mean 'c'?",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, text):
    assert text in message_of(lambda: ClickLogExampleGen(**{"schema": TINY, "train": "log", **arguments}))


def test_the_configuration_survives_the_way_to_the_executor():
    for config in (
        IngestConfig(AVAZU, "time", 0.3, 14_103_000, 7, 0.5, 1000),
        IngestConfig(AVAZU, "column", column="id", parts={"train": ["1"], "eval": ["2", "3"]}),
    ):
        sent = proto_utils.proto_to_json(to_proto(config))
        received = example_gen_pb2.CustomConfig()
        proto_utils.json_to_proto(sent, received)
        assert from_proto(received) == config


def test_tfx_caches_until_files_or_settings_change(tmp_path):
    log = Path(write_lines(tmp_path / "log.tsv", lines_of(0, 400)))
    store = orchestration.metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.db"))

    def run(**kwargs):
        nodes = [ClickLogExampleGen(TINY, str(log), **kwargs)]
        root = str(tmp_path / "root")
        pipeline = dsl.Pipeline(
            "log", root, components=nodes, metadata_connection_config=store, enable_cache=True
        )
        orchestration.LocalDagRunner().run(pipeline)
        with metadata.Metadata(store) as handle:
            return handle.store.get_artifacts_by_type("Examples")

    first = run()
    assert len(first) == 1
    assert first[0].custom_properties["rows_read"].int_value == 400
    assert len(run()) == 1
    stat = log.stat()
    log.write_text(log.read_text().replace("cat399", "CAT399"))
    os.utime(log, ns=(stat.st_atime_ns, stat.st_mtime_ns // 10**9 * 10**9 + (stat.st_mtime_ns + 1) % 10**9))
    assert len(run()) == 2
    assert len(run(eval_share=0.3)) == 3
    assert len(run(eval_share=0.3)) == 3


@pytest.mark.parametrize(
    ("name", "schema", "rows", "kwargs"),
    [
        ("criteo_sample.tsv.gz", CRITEO, 13_513, {}),
        ("avazu_sample.csv.gz", AVAZU, 205_855, {"method": "time"}),
    ],
)
def test_all_rows_of_the_real_samples_are_in_the_artifact(tmp_path, samples, name, schema, rows, kwargs):
    examples = ingest(tmp_path, schema, samples / name, max_reject_share=0, **kwargs)
    counted = count_rows(examples.uri)
    assert sum(counted.values()) == rows
    assert abs(counted["eval"] / rows - 0.2) < 0.02
