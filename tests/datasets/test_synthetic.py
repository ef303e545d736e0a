"""Synthetic logs: the same from the same seed, readable, and with a truth that their clicks follow."""

import dataclasses
import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from mlet_tf.datasets import (
    AVAZU,
    CRITEO,
    ClickLogSchema,
    Teacher,
    TeacherReport,
    TimeColumn,
    read_log,
    write_log,
)
from mlet_tf.datasets.times import hours_since_1970
from mlet_tf.errors import InputError

ROWS = 20_000
SMALL = ClickLogSchema.from_dict(
    {
        "name": "small",
        "label": "y",
        "integers": ["i"],
        "categoricals": ["a", "b"],
        "separator": ";",
        "missing": ["NA"],
    }
)


@pytest.fixture(scope="session")
def criteo(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "log.tsv"
    return path, write_log(path, CRITEO, ROWS, seed=3)


def read(path, schema):
    return pa.concat_tables(read_log(str(path), schema, max_reject_share=0))


def auc_of(labels, scores):
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(len(scores))
    clicks = labels == 1
    return (ranks[clicks].mean() - (clicks.sum() - 1) / 2) / (~clicks).sum()


def test_the_truth_is_that_of_the_rows_in_the_file(criteo):
    path, report = criteo
    table = read(path, CRITEO)
    labels = table["label"].to_numpy()
    truth = Teacher(CRITEO, seed=3).probabilities(table)
    assert report == TeacherReport.read(path)
    assert report.rows == len(table) == ROWS
    assert report.ctr == labels.mean()
    # Exact forms of what the report has from a histogram.
    order = np.argsort(truth)
    p, below = truth[order], np.cumsum((1 - truth)[order]) - (1 - truth)[order] / 2
    assert report.auc == pytest.approx(p @ below / (p.sum() * (1 - p).sum()), abs=1e-5)
    assert report.logloss == pytest.approx(-np.mean(p * np.log(p) + (1 - p) * np.log(1 - p)), abs=1e-9)
    # The clicks drawn are those of these probabilities, to within four standard errors.
    assert abs(labels.mean() - truth.mean()) < 4 * np.sqrt(np.mean(truth * (1 - truth)) / ROWS)
    assert abs(auc_of(labels, truth) - report.auc) < 0.015
    logloss = -np.mean(np.where(labels == 1, np.log(truth), np.log(1 - truth)))
    assert abs(logloss - report.logloss) < 0.015


def test_clicks_follow_the_truth_all_along_its_range(criteo):
    table = read(criteo[0], CRITEO)
    truth, labels = Teacher(CRITEO, seed=3).probabilities(table), table["label"].to_numpy()
    for part in np.array_split(np.argsort(truth), 8):
        error = 4 * np.sqrt(np.mean(truth[part] * (1 - truth[part])) / len(part))
        assert abs(labels[part].mean() - truth[part].mean()) < error


def test_the_click_rate_is_the_one_wanted(tmp_path):
    for ctr in (0.03, 0.5):
        report = write_log(tmp_path / "log.tsv", CRITEO, ROWS, ctr=ctr)
        assert report.ctr == pytest.approx(ctr, abs=0.015)


def test_noise_and_strength_set_what_can_be_reached(tmp_path):
    aucs = [
        write_log(tmp_path / "log", SMALL, 5000, **arguments).auc
        for arguments in ({"strength": 0.0}, {"noise": 1.0}, {"strength": 1.0}, {"strength": 3.0})
    ]
    assert aucs[0] == pytest.approx(0.5, abs=1e-9)
    assert aucs[1] == pytest.approx(0.5, abs=1e-9)
    assert 0.55 < aucs[2] < aucs[3] < 1


def test_categories_have_a_power_law_and_columns_the_stated_missing_share(criteo):
    path, report = criteo
    table = read(path, CRITEO)
    assert np.mean(list(report.missing_shares.values())) == pytest.approx(0.1, abs=0.01)
    for name in (*CRITEO.categoricals, *CRITEO.integers):
        assert table[name].null_count / ROWS == pytest.approx(report.missing_shares[name], abs=0.02)
    largest = max(report.vocabulary_sizes, key=report.vocabulary_sizes.get)
    assert report.vocabulary_sizes[largest] == 20_000
    counts = np.sort(table[largest].drop_null().value_counts().field(1).to_numpy())[::-1]
    assert 1000 < len(counts) <= 20_000
    # Over a factor of ten in rank, counts fall by ten to the power.
    assert np.log10(counts[4:7].mean() / counts[40:70].mean()) == pytest.approx(1.1, abs=0.25)
    assert {len(value) for value in table[largest].drop_null().unique().to_pylist()} == {8}


def test_the_same_arguments_give_the_same_bytes(tmp_path, criteo):
    path, report = criteo
    again = tmp_path / "again.tsv.gz"
    assert write_log(again, CRITEO, ROWS, seed=3) == report
    assert gzip.decompress(again.read_bytes()) == path.read_bytes()
    first = again.read_bytes()
    write_log(again, CRITEO, ROWS, seed=3)
    assert again.read_bytes() == first
    write_log(again, CRITEO, 17_000, seed=3)
    assert path.read_bytes().startswith(gzip.decompress(again.read_bytes()))
    write_log(again, CRITEO, 1000, seed=4)
    assert not path.read_bytes().startswith(gzip.decompress(again.read_bytes())[:1000])


def test_text_and_parquet_have_the_same_rows(tmp_path):
    for name in ("log.csv", "log.parquet"):
        write_log(tmp_path / name, AVAZU, ROWS)
    table = read(tmp_path / "log.csv", AVAZU)
    assert table.combine_chunks() == read(tmp_path / "log.parquet", AVAZU).combine_chunks()
    assert (tmp_path / "log.csv").read_text().startswith(",".join(AVAZU.columns) + "\n0,")


def test_avazu_rows_come_in_order_of_time_over_several_days(tmp_path):
    write_log(tmp_path / "log.csv", AVAZU, 3000)
    hours = hours_since_1970(read(tmp_path / "log.csv", AVAZU)["hour"].to_numpy(), AVAZU.time)
    assert (np.diff(hours) >= 0).all()
    assert len(np.unique(hours // 24)) == 10


def test_any_schema_can_be_written(tmp_path):
    schema = ClickLogSchema.from_dict(
        {
            **SMALL.to_dict(),
            **{"columns": ["key", "a", "at", "y", "b", "i"], "drop": ["key"], "header": True},
            "time": {"name": "at", "format": "unix_seconds", "derive": []},
        }
    )
    report = write_log(tmp_path / "log.txt", schema, 500)
    table = read(tmp_path / "log.txt", schema)
    assert (report.rows, table.column_names) == (500, ["y", "i", "at", "a", "b"])
    assert b"NA" in (tmp_path / "log.txt").read_bytes()
    unmarked = dataclasses.replace(SMALL, missing=())
    write_log(tmp_path / "unmarked.txt", unmarked, 500)
    assert read(tmp_path / "unmarked.txt", unmarked)["i"].null_count == 0
    only_time = ClickLogSchema("t", "y", (), (), TimeColumn("t"), (), ("y", "t"), ",", False, ())
    write_log(tmp_path / "time.csv", only_time, 500)
    assert read(tmp_path / "time.csv", only_time).num_rows == 500


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(batches):
        tracemalloc.start()
        try:
            write_log(tmp_path / "log", SMALL, batches * 16_384, vocabulary=100)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)
    assert peak(12) < 1.2 * peak(3)


def test_progress_is_told_and_a_broken_off_log_leaves_nothing(tmp_path):
    seen = []
    write_log(tmp_path / "whole.tsv", SMALL, 40_000, progress=seen.append)
    assert seen == [16_384, 32_768, 40_000]

    def stop(_):
        raise KeyboardInterrupt

    (tmp_path / "folder").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_log(tmp_path / "folder" / "part.tsv", SMALL, 40_000, progress=stop)
    assert not list((tmp_path / "folder").iterdir())


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"log\.tsv cannot be written: "):
        write_log(tmp_path / "file" / "log.tsv", SMALL, 10)
    for name, value in {
        "seed": -1,
        "rank": 0,
        "ctr": 1,
        "vocabulary": 0,
        "missing": 0.9,
        "noise": 2,
        "strength": -1,
    }.items():
        with pytest.raises(InputError, match=f"`{name}` should be .* Received: {value}"):
            write_log(tmp_path / "log.tsv", SMALL, 10, **{name: value})
    with pytest.raises(InputError, match=r"`rows` should be at least 1\. Received: 0"):
        write_log(tmp_path / "log.tsv", SMALL, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_the_report_is_plain_json(criteo):
    values = json.loads(TeacherReport.path_for(criteo[0]).read_text())
    assert values["teacher"]["rank"] == 8
    assert set(values["vocabulary_sizes"]) == set(CRITEO.categoricals)
