"""`predict` and `push --warmup` on files: no row is lost without a word, and the label need not be there."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlet_tf.datasets import CRITEO, ClickLogSchema
from mlet_tf.datasets.reading import plan_chunks
from mlet_tf.errors import InputError
from mlet_tf.serving import LocalServer, ServeOptions, push
from mlet_tf.serving.log_rows import read_rows

SHOP = ClickLogSchema.from_dict(
    {
        **{"name": "shop", "label": "y", "integers": ["I1"], "categoricals": ["C1"]},
        **{"separator": ",", "header": True, "columns": ["C1", "y", "I1"]},
    }
)


def criteo_line(number, label="0"):
    return (
        "\t".join([*([label] if label is not None else []), str(number), *[""] * 12, "ab", *[""] * 25]) + "\n"
    )


def values(rows, name="I1"):
    return rows.good[name].to_pylist()


def test_rows_keep_their_places_around_malformed_ones(tmp_path):
    lines = [criteo_line(n) for n in range(9)]
    lines[2], lines[6] = "too\tshort\n", criteo_line("x")
    lines.insert(4, "\n")  # A line with nothing on it is no row.
    for name, data in (
        ("log.tsv", "".join(lines).encode()),
        ("log.tsv.gz", gzip.compress("".join(lines).encode())),
    ):
        (tmp_path / name).write_bytes(data)
        rows = read_rows(str(tmp_path / name), CRITEO, 8)
        assert rows.is_good.tolist() == [True, True, False, True, True, True, False, True]
        assert values(rows) == [0, 1, 3, 4, 5, 7]
        assert [reject.line for reject in rows.rejects] == [3, 8]
        aligned = rows.align(np.array(values(rows), np.float32))
        np.testing.assert_array_equal(aligned, [0, 1, np.nan, 3, 4, 5, np.nan, 7])
        assert read_rows(str(tmp_path / name), CRITEO, 2).rejects == []


def test_rows_of_parquet_and_of_several_files(tmp_path):
    table = pa.table({"I1": ["1", "x", "3"], "C1": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    pq.write_table(table, tmp_path / "b.parquet")
    rows = read_rows(str(tmp_path), SHOP, 5)
    assert rows.is_good.tolist() == [True, False, True, True, False]
    assert values(rows) == [1, 3, 1]
    assert [(reject.file[-9:], reject.line) for reject in rows.rejects] == [
        ("a.parquet", 2),
        ("b.parquet", 2),
    ]


@pytest.mark.parametrize("rows", [1, 12])
def test_files_without_the_label_are_read_for_prediction_only(tmp_path, rows):
    (tmp_path / "day.tsv").write_text("".join(criteo_line(n, None) for n in range(rows)))
    (tmp_path / "day.csv").write_text("I1,C1\n" + "".join(f"{n},ab\n" for n in range(rows)))
    pq.write_table(pa.table({"C1": ["ab"] * rows, "I1": range(rows)}), tmp_path / "day.parquet")
    for name, schema in (("day.tsv", CRITEO), ("day.csv", SHOP), ("day.parquet", SHOP)):
        found = read_rows(str(tmp_path / name), schema, 100)
        assert (values(found), values(found, "C1")) == (list(range(rows)), [b"ab"] * rows)
        assert not found.rejects
    for name in ("day.csv", "day.parquet"):
        with pytest.raises(InputError, match="has no column 'y', which schema 'shop' expects"):
            plan_chunks([str(tmp_path / name)], SHOP)
    with pytest.raises(InputError, match=r"should have 40 columns .* Received: 39"):
        plan_chunks([str(tmp_path / "day.tsv")], CRITEO)


@pytest.fixture(scope="module")
def server(tmp_path_factory, write_model):
    folder = tmp_path_factory.mktemp("raw")
    write_model.raw(folder / "model")
    push(folder / "model", folder / "ctr")
    with LocalServer(ServeOptions(model_base_path=str(folder / "ctr"), port=0, rest_api_port=0)) as running:
        yield folder / "model", f"127.0.0.1:{running.rest_api_port}"


def test_predict_marks_a_malformed_row_and_ends_with_1(command, server, tmp_path):
    path = tmp_path / "day.tsv"
    lines = [criteo_line(n, None) for n in range(6)]
    lines[2] = "only\ttwo\n"
    path.write_text("".join(lines))
    code, out, err = command("predict", path, "--server", server[1])
    assert code == 1
    answers = out.split("\n")
    assert answers[2] == "nan"
    expected = 1 / (1 + np.exp(-(0.1 * np.array([0, 1, 3, 4, 5]) + 2)))
    np.testing.assert_allclose([float(x) for n, x in enumerate(answers[:6]) if n != 2], expected, atol=1e-6)
    assert err == f"{path}: line 3: expected 39 columns. Received: 2\n"
    assert command("predict", path, "--server", server[1], "--rows", 2)[0] == 0
    one = command("predict", json.dumps({"I1": 3.0, "C1": "ab"}), "--server", server[1])
    assert one == (0, f"{expected[2]:.6f}\n", "")


def test_predict_of_malformed_rows_alone_asks_for_nothing(command, tmp_path):
    (tmp_path / "day.tsv").write_text("a\tb\n")
    code, out, err = command("predict", tmp_path / "day.tsv", "--server", "127.0.0.1:1")
    assert (code, out, err.count("\n")) == (1, "nan\n", 1)


def test_push_warms_up_with_well_formed_rows_or_not_at_all(command, server, tmp_path):
    path = tmp_path / "day.tsv"
    path.write_text("".join(criteo_line(n, None) for n in range(3)))
    base = tmp_path / "ctr"
    assert command("push", server[0], base, "--warmup", path)[:2] == (0, f"{base}/1\n")
    path.write_text(path.read_text() + "only\ttwo\n")
    code, out, err = command("push", server[0], base, "--warmup", path)
    assert (code, out) == (1, "")
    assert f"{path}: line 4: expected 39 columns. Received: 2" in err and "nothing was pushed" in err
    assert [version.name for version in base.iterdir()] == ["1"]
