"""StatisticsGen against tensorflow-data-validation's own pass over the same examples."""

import re
import weakref
from pathlib import Path
from typing import ClassVar

import pytest
import tensorflow_data_validation as tfdv
from mlet_tf.components.example_validator import executor as validator
from mlet_tf.components.statistics_gen import executor
from tests_support import make_statistics, run_example_gen, run_statistics_gen, write_schema
from tfx.types import standard_artifacts

from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.synthetic import write_log
from mlet_tf.errors import GateError
from mlet_tf.features.statistics import summarize_file

ROWS = 3000


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    write_log(folder / "log.tsv", CRITEO, ROWS, seed=5, vocabulary=300, rank=2)
    return run_example_gen(folder / "examples", CRITEO, folder / "log.tsv", chunk_bytes=100_000)


@pytest.fixture(scope="module")
def statistics(tmp_path_factory, examples):
    """Those of all rows."""
    return run_statistics_gen(tmp_path_factory.mktemp("all"), CRITEO, examples)


def _features(statistics):
    (dataset,) = statistics.datasets
    return dataset.num_examples, {feature.path.step[0]: feature for feature in dataset.features}


def test_counts_and_top_values_equal_those_of_tfdv(examples, statistics):
    for split in ("train", "eval"):
        files = f"{examples.uri}/Split-{split}/*"
        expected = tfdv.generate_statistics_from_tfrecord(files)
        rows, features = _features(statistics[split])
        expected_rows, expected_features = _features(expected)
        assert rows == expected_rows > 0
        assert features.keys() == expected_features.keys() == {CRITEO.label, *CRITEO.raw_features}
        for name, feature in features.items():
            kind = feature.WhichOneof("stats")
            ours_of, theirs = getattr(feature, kind), getattr(expected_features[name], kind)
            assert feature.type == expected_features[name].type
            assert ours_of.common_stats.num_missing == theirs.common_stats.num_missing
            assert ours_of.common_stats.num_non_missing == theirs.common_stats.num_non_missing
            assert ours_of.common_stats.tot_num_values == theirs.common_stats.tot_num_values
            if kind == "num_stats":
                assert (ours_of.min, ours_of.max, ours_of.num_zeros) == (
                    theirs.min,
                    theirs.max,
                    theirs.num_zeros,
                )
                assert ours_of.mean == pytest.approx(theirs.mean)
                assert ours_of.std_dev == pytest.approx(theirs.std_dev)
            else:
                assert ours_of.unique == theirs.unique
                assert ours_of.rank_histogram == theirs.rank_histogram


def test_a_sample_is_drawn_and_is_the_same_again(tmp_path, examples):
    first, second = (
        run_statistics_gen(tmp_path / name, CRITEO, examples, sample_rate=0.2, min_rows=1)
        for name in ("a", "b")
    )
    rows = _features(first["train"])[0]
    assert rows == pytest.approx(0.2 * 0.8 * ROWS, rel=0.25)
    assert first["train"] == second["train"]
    assert not Path(tmp_path, "a", "statistics", "staging").exists()


def test_a_small_split_is_looked_at_whatever_the_sample_rate(tmp_path, examples, statistics):
    assert run_statistics_gen(tmp_path / "all", CRITEO, examples, sample_rate=1e-9) == statistics
    some = run_statistics_gen(tmp_path / "some", CRITEO, examples, sample_rate=0.01, min_rows=400)
    for split in ("train", "eval"):
        assert _features(some[split])[0] == pytest.approx(400, rel=0.25)


def test_a_problem_found_in_a_sample_names_the_sample(tmp_path):
    """C14 has one value in the whole log: enough for the schema, too little for a sample."""
    write_log(tmp_path / "log.tsv", CRITEO, ROWS, seed=5, vocabulary=300, rank=2)
    rows = [line.split("\t") for line in (tmp_path / "log.tsv").read_text().splitlines()]
    column = CRITEO.columns.index("C14")
    for number, row in enumerate(rows):
        row[column] = "" if number else "once"
    (tmp_path / "log.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    examples = run_example_gen(
        tmp_path / "examples", CRITEO, tmp_path / "log.tsv", str(tmp_path / "log.tsv"), method="files"
    )
    inputs = {"schema": [write_schema(tmp_path / "schema", CRITEO)]}

    def validate(name, **sampling):
        statistics = make_statistics(tmp_path / name, CRITEO, examples, **sampling)
        anomalies = standard_artifacts.ExampleAnomalies()
        anomalies.uri = str(tmp_path / name / "anomalies")
        validator.Executor().Do({**inputs, "statistics": [statistics]}, {"anomalies": [anomalies]}, {})

    validate("default", sample_rate=0.001)
    with pytest.raises(GateError) as caught:
        validate("sampled", sample_rate=0.001, min_rows=200)
    assert re.search(
        rf"train \(a sample: \d\d\d of {ROWS:,} rows, by validation.sample_rate\), column C14: .*not present",
        str(caught.value),
    )


class _Tracked(list):
    """The accumulators of a file, which know how many of them are held at once."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()
    most = 0
    __hash__ = object.__hash__

    def __new__(cls, *args):
        self = super().__new__(cls)
        cls.alive.add(self)
        _Tracked.most = max(cls.most, len(cls.alive))
        return self


def _summarize_tracked(task, **kwargs):
    return _Tracked(summarize_file(task, **kwargs))


def test_results_of_files_are_merged_one_at_a_time_and_parsed_by_one_graph(
    tmp_path, monkeypatch, caplog, examples, statistics
):
    files = sorted(Path(examples.uri, "Split-train").iterdir())
    assert len(files) > 5
    monkeypatch.setattr(executor, "summarize_file", _summarize_tracked)
    with caplog.at_level("WARNING"):
        assert run_statistics_gen(tmp_path / "b", CRITEO, examples) == statistics
    # One merged, one loaded, and the one before it that a loop may still name.
    assert 0 < _Tracked.most <= 3
    assert "retracing" not in caplog.text
