"""Packing examples for the trainer: in one order, once, whatever is killed or broken on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tests_support import run_example_gen

from mlet_tf import evaluation
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.features import packing
from mlet_tf.features.examples import raw_feature_spec
from mlet_tf.features.halves import JUDGING_ROWS, MAX_CHOOSING_ROWS, choosing_step
from mlet_tf.features.ingestion.report import read_ingest_report, write_ingest_report
from mlet_tf.features.packing import pack_examples

SCHEMA = ClickLogSchema(
    name="numbered",
    label="y",
    integers=("i",),
    categoricals=("c",),
    time=None,
    drop=(),
    columns=("y", "i", "c"),
    separator="\t",
    header=True,
    missing=("",),
)
SIZES = (3000, 300, 300, 300)


def number_columns(columns):
    """Stands for the transform graph: the row's number as its dense value and as its id."""
    number = tf.sparse.to_dense(columns["i"])
    label = tf.cast(tf.sparse.to_dense(columns["y"])[:, 0], tf.float32)
    return {"label": label, "dense_features": tf.cast(number, tf.float32), "sparse_features": number}


def slow_columns(columns):
    """The same, with a wait for each row: a large shard ends after the small ones behind it."""
    outputs = number_columns(columns)
    wait = tf.numpy_function(lambda label: time.sleep(len(label) / 3000), [outputs["label"]], [])
    with tf.control_dependencies([wait]):
        return {name: tf.identity(value) for name, value in outputs.items()}


def ingest(folder: Path, first: int = 0) -> Path:
    """Examples of numbered rows, a shard for each of `SIZES` and split."""
    log = folder / f"log-{first}"
    log.mkdir()
    for name, rows in zip("abcd", SIZES, strict=True):
        lines = "".join(f"{n % 2}\t{n}\tcat{n}\n" for n in range(first, first + rows))
        (log / f"{name}.tsv").write_text("y\ti\tc\n" + lines)
        first += rows
    return Path(run_example_gen(folder / "examples", SCHEMA, log).uri)


def shards(examples: Path) -> list[Path]:
    return sorted((examples / "Split-train").iterdir())


def numbers_in(paths: list[Path]) -> list[int]:
    records = tf.data.TFRecordDataset([str(path) for path in paths], "GZIP").as_numpy_iterator()
    return [
        tf.train.Example.FromString(record).features.feature["i"].int64_list.value[0] for record in records
    ]


def pack(examples: Path, folder: Path, transform=number_columns, every=1) -> list[int]:
    """Packs the train split; returns the ids in the order of the rows."""
    packed = pack_examples([f"{examples}/Split-train/*"], SCHEMA, transform, folder, every)
    rows = [(inputs, label.numpy()) for inputs, label in packed.batches(100)]
    ids = np.concatenate([inputs["sparse_features"][:, 0] for inputs, _ in rows])
    np.testing.assert_array_equal(np.concatenate([label for _, label in rows]), ids % 2)
    np.testing.assert_array_equal(np.concatenate([inputs["dense_features"][:, 0] for inputs, _ in rows]), ids)
    return ids.tolist()


def judged(examples: Path, folder: Path) -> list[int]:
    """The numbers of the rows of the train split that the evaluation asks a compressed model for."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def number(examples):
        columns = tf.io.parse_example(examples, raw_feature_spec(SCHEMA))
        return {"ctr": tf.cast(tf.sparse.to_dense(columns["i"])[:, 0], tf.float32)}

    signature = number.get_concrete_function()
    tf.saved_model.save(tf.Module(), str(folder), signatures={"serving_default": signature})
    models = evaluation.ModelComparison({"m": str(folder)}, SCHEMA, "", (), (), JUDGING_ROWS)
    return [int(ctr) for path in shards(examples) for ctr in models.predict(str(path))["ctr.m"]]


def spoil(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(b"spoiled")


@pytest.fixture
def examples(tmp_path):
    examples = ingest(tmp_path)
    assert len(shards(examples)) == len(SIZES)
    return examples


def test_rows_keep_the_order_of_the_shards(examples, tmp_path):
    assert pack(examples, tmp_path / "packed", slow_columns) == numbers_in(shards(examples))


def test_killed_packing_goes_on_with_the_shards_that_are_left(examples, tmp_path):
    expected, folder = numbers_in(shards(examples)), tmp_path / "packed"
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import test_packing; test_packing.slow_pack(*sys.argv[3:])"
    )
    folders = [str(parent) for parent in Path(__file__).parents[:2]]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *folders, str(examples), str(folder)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stderr=subprocess.PIPE,
        text=True,
    )
    first = next((line for line in process.stderr if "packing" in line), "")
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(numbers_in(shards(examples)[:1]))
    assert f"packing packed: {done:,} of {len(expected):,} rows" in first

    spoil(shards(examples)[:1])
    assert pack(examples, folder) == expected
    spoil(shards(examples))
    assert pack(examples, folder) == expected, "a finished folder is used as it is"


def slow_pack(examples: str, folder: str) -> None:
    """Leaves time to be killed after the first shard."""

    def transform(columns):
        outputs = slow_columns(columns)
        number = outputs["sparse_features"]
        late = tf.numpy_function(lambda first: time.sleep(60 * float(first >= SIZES[0])), [number[0, 0]], [])
        with tf.control_dependencies([late]):
            return {name: tf.identity(value) for name, value in outputs.items()}

    pack(Path(examples), Path(folder), transform)


def test_a_damaged_shard_is_named_and_the_work_before_it_is_kept(examples, tmp_path):
    expected, damaged = numbers_in(shards(examples)), shards(examples)[2]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=f"The shard {damaged} is damaged"):
        pack(examples, tmp_path / "packed")
    damaged.write_bytes(whole)
    spoil(shards(examples)[:2])
    assert pack(examples, tmp_path / "packed") == expected


def test_rows_of_other_examples_are_not_used(examples, tmp_path):
    (tmp_path / "others").mkdir()
    others = ingest(tmp_path / "others", first=100_000)
    expected = numbers_in(shards(examples))
    assert pack(examples, tmp_path / "packed") == expected
    whole = shards(others)[0].read_bytes()
    spoil(shards(others)[:1])
    with pytest.raises(InputError, match="is damaged"):
        pack(others, tmp_path / "packed")
    assert pack(examples, tmp_path / "packed") == expected
    shards(others)[0].write_bytes(whole)
    assert pack(others, tmp_path / "packed") == numbers_in(shards(others))


def test_other_examples_in_the_same_place_are_packed_anew(examples, tmp_path):
    before = pack(examples, tmp_path / "packed")
    shutil.rmtree(examples)
    after = pack(ingest(tmp_path, first=100_000), tmp_path / "packed")
    assert len(after) > 2000 and not set(after) & set(before)


@pytest.mark.parametrize("every", [2, 6])
def test_every_nth_row_of_each_shard(examples, tmp_path, monkeypatch, every):
    """Positions run over the shard, not over the batches that it is read in."""
    monkeypatch.setattr(packing, "_PACK_BATCH", 7)
    expected = [number for shard in shards(examples) for number in numbers_in([shard])[::every]]
    assert pack(examples, tmp_path / "packed", every=every) == expected
    assert pack(examples, tmp_path / "packed") == numbers_in(shards(examples)), "other rows are packed anew"


def test_rows_that_choose_and_rows_that_judge_are_all_rows_each_once(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_PACK_BATCH", 7)
    monkeypatch.setattr(evaluation, "_BATCH", 101)
    monkeypatch.setattr(evaluation, "TransformGraph", lambda folder: None)
    numbers = numbers_in(shards(examples))
    choose = pack(examples, tmp_path / "packed", every=choosing_step(len(numbers)))
    judge = judged(examples, tmp_path / "model")
    assert abs(len(choose) - len(judge)) <= len(SIZES)
    assert sorted(choose + judge) == sorted(numbers)


@pytest.mark.parametrize("rows", [1, 2, 2 * MAX_CHOOSING_ROWS, 2 * MAX_CHOOSING_ROWS + 1, 95_000_001])
def test_no_more_rows_choose_than_an_auc_needs(rows):
    """And none of them judges, as the distance from one to the next is even."""
    step = choosing_step(rows)
    assert step % 2 == 0 and rows / step <= MAX_CHOOSING_ROWS
    assert step == 2 or rows / (step - 2) > MAX_CHOOSING_ROWS


def test_a_row_that_got_lost_is_noticed_although_not_every_row_is_packed(examples, tmp_path):
    report = read_ingest_report(str(examples))
    report["rows"]["train"] += 1
    write_ingest_report(str(examples), report)
    with pytest.raises(InputError, match=f"{report['rows']['train']} rows were written, .* can be read"):
        pack(examples, tmp_path / "packed", every=2)


def test_who_packs_into_the_same_folder_waits_and_uses_the_rows(examples, tmp_path, monkeypatch):
    """Runs on Kubeflow that train at the same time may share a disk and a cached transform graph."""
    read = []
    batches = packing.example_batches
    monkeypatch.setattr(
        packing, "example_batches", lambda files, size: read.append(files) or batches(files, size)
    )
    with futures.ThreadPoolExecutor(2) as pool:
        packed = list(pool.map(lambda _: pack(examples, tmp_path / "packed", slow_columns), range(2)))
    assert packed == [numbers_in(shards(examples))] * 2
    assert len(read) == len(SIZES)


def test_packed_rows_of_a_run_are_in_one_folder_of_a_local_disk(tmp_path):
    """Trainer and compressor pack the same rows with the same graph: once."""
    local = packing.packed_folder(str(tmp_path), "graph")
    assert local.parent == tmp_path and local == packing.packed_folder(str(tmp_path), "graph")
    assert local != packing.packed_folder(str(tmp_path), "other graph")
    remote = packing.packed_folder("s3://bucket/work", "graph")
    assert remote.is_absolute() and "s3:" not in str(remote)
    assert (
        remote
        == packing.packed_folder("s3://bucket/work", "graph")
        != packing.packed_folder("s3://b", "graph")
    )
