"""What is made of the records of a study: which direct size is as good, on which ids, drawn and in tables."""

import itertools
from pathlib import Path

import pytest

from mlet_tf.experiments.comparison import band_differences, families, matches
from mlet_tf.experiments.frontier import plot_headline
from mlet_tf.experiments.results import fill
from mlet_tf.experiments.statistics import groups
from mlet_tf.experiments.store import TrialStore, read_records

NOISE = (-0.004, -0.002, 0.0, 0.002, 0.004)  # What seeds share.
OWN = (0.0002, -0.0001, 0.0, 0.0001, -0.0002)  # What they do not.


def cell(kind, d, auc, study="s", validation=None, own=1.0, **more):
    """The final records of a cell whose mean test AUC is `auc`."""
    common = {"study": study, "stage": "final", "kind": kind, "output_dim": d, "method": None}
    common |= {"hidden_dim": 64 if kind == "mlet" else None, "initialization": None, "bytes": 400 * d}
    common |= {"learning_rates": {"tables": 0.1}, "train_cpu_seconds": 1.0}
    for seed, (shared, alone) in enumerate(zip(NOISE, OWN, strict=True)):
        sign = 1 if kind == "mlet" else -1
        value = auc + shared + sign * own * alone
        metrics = {"auc": value, "logloss": 0.4, "normalized_entropy": 0.8}
        record = common | {"key": f"{kind}{d}{auc}{seed}{study}{more}", "seed": seed, **more}
        yield record | {"test": metrics, "validation": metrics | {"auc": validation or auc}}


def study_of(*cells):
    return groups(record for records in cells for record in records)


def test_as_good_is_the_smallest_direct_size_that_is_not_clearly_below():
    direct = [cell("direct", d, auc) for d, auc in ((2, 0.80), (4, 0.83), (8, 0.8499), (16, 0.86))]
    (match,) = matches(study_of(*direct, cell("mlet", 2, 0.85)))
    assert match.direct.record["output_dim"] == 8
    assert match.gap.mean == pytest.approx(-0.0001) and match.gap.low < -0.0001 < 0 < match.gap.high
    assert match.no_lower.record["output_dim"] == 16


def test_no_direct_size_may_be_as_good():
    (match,) = matches(study_of(cell("direct", 2, 0.80), cell("direct", 8, 0.84), cell("mlet", 4, 0.85)))
    assert match.direct is match.gap is match.no_lower is None
    assert match.largest.record["output_dim"] == 8


def test_a_smaller_direct_size_may_be_as_good():
    (match,) = matches(study_of(cell("direct", 2, 0.86), cell("direct", 8, 0.84), cell("mlet", 4, 0.85)))
    assert match.direct.record["output_dim"] == 2


def test_validation_rows_choose_the_cell_of_a_size():
    chosen = cell("mlet", 2, 0.82, validation=0.9, initialization="orthogonal")
    found = study_of(cell("direct", 2, 0.82), cell("direct", 8, 0.9), cell("mlet", 2, 0.88), chosen)
    (match,) = matches(found)
    assert match.mlet.record["initialization"] == "orthogonal" and match.direct.record["output_dim"] == 2


def test_a_cell_that_stayed_constant_takes_no_part():
    constant = ({**record, "constant": True} for record in cell("direct", 2, 0.9))
    (match,) = matches(study_of(constant, cell("direct", 4, 0.85), cell("mlet", 2, 0.85)))
    assert match.direct.record["output_dim"] == 4


def test_differences_by_feature_and_frequency():
    def scored(kind, gain):
        for record in cell(kind, 4, 0.85):
            bands = {"1-9": record["test"]["auc"] - 0.1 + gain, "10-": record["test"]["auc"]}
            by_band = {band: {"rows": 70, "auc": auc, "logloss": 0.4} for band, auc in bands.items()}
            yield record | {"test_by_frequency": {"user": by_band}}

    rare, frequent = band_differences(study_of(scored("direct", 0.0), scored("mlet", 0.01)))
    assert (rare.output_dim, rare.feature, rare.band, rare.rows) == (4, "user", "1-9", 70)
    assert rare.direct == pytest.approx(0.75)
    assert rare.gap.mean == pytest.approx(0.01) and rare.gap.is_clear
    assert frequent.band == "10-" and not frequent.gap.is_clear


def test_a_family_has_the_best_cell_of_each_size():
    def truncated(method, auc):
        return cell("direct", 32, auc, method=method, truncated_to=4, bytes=1700)

    found = study_of(
        cell("direct", 4, 0.83),
        cell("direct", 32, 0.86),
        cell("mlet", 4, 0.84),
        cell("mlet", 4, 0.85, initialization="orthogonal"),
        truncated("per_table", 0.84),
        truncated("allocated", 0.82),
        ({**record, "stage": "control"} for record in cell("direct", 8, 0.9)),
    )
    assert {name: [group.label for group in members] for name, members in families(found).items()} == {
        "direct": ["direct d=4", "direct d=32"],
        "mlet": ["mlet d=4 k=64 orthogonal"],
        "direct, truncated": ["direct d=32 -> 4 (per_table)"],
    }


@pytest.fixture
def results(tmp_path):
    """Trials of two studies."""
    for study in ("one", "two"):
        store = TrialStore(tmp_path / "results" / f"{study}.jsonl")
        for d, auc in ((2, 0.82), (4, 0.84), (8, 0.85)):
            store.append(list(cell("direct", d, auc, study)))
        store.append(list(cell("mlet", 2, 0.84, study, at_edge=["train.tables.learning_rate"])))
        faults = [record | {"constant": record["seed"] > 2} for record in cell("mlet", 4, 0.86, study)]
        store.append(faults)
    return tmp_path


def test_pages_have_matches_of_several_studies_edges_and_constants(results):
    page = results / "page.md"
    blocks = ("matches of one, two", "cells of one", "same size of one", "chosen of two", "claim of two")
    blocks += ("frequency of one", "variants of one", "one training of one")
    page.write_text(
        "".join(f"<!-- {block} -->\nold\n<!-- end -->\n" for block in blocks) + "results/headline.png"
    )
    fill(page)
    text = page.read_text()
    assert "old" not in text
    lines = [line for line in text.splitlines() if line.startswith(("| one", "| two"))]
    expected = [
        ("2", "0.8400 ± 0.0038", "4 (2.00)", "4 (2.00)"),
        ("4", "0.8580 ± 0.0047", "none up to 8 (> 2.00)", "none up to 8 (> 2.00)"),
    ]
    for line, (study, (d, auc, good, no_lower)) in zip(
        lines, itertools.product(("one", "two"), expected), strict=True
    ):
        columns = line.strip("| ").split(" | ")
        assert (columns[:4], columns[5]) == ([study, d, auc, good], no_lower)
    assert "| 0.1 (edge) | 0.8400" in text
    assert "± 0.0047, constant (2 of 5) |" in text
    assert (results / "results" / "headline.png").read_bytes().startswith(b"\x89PNG")
    assert not (results / "results" / "one.png").exists(), "the page does not show it"


def test_compressed_models_are_compared_with_the_best_direct_one(tmp_path):
    store = TrialStore(tmp_path / "results" / "one.jsonl")
    for d, auc in ((4, 0.84), (8, 0.85), (16, 0.8502)):
        store.append(list(cell("direct", d, auc)))
    store.append(list(cell("mlet", 16, 0.86)))
    store.append(list(cell("mlet", 16, 0.858, bytes=400, method="compressed", truncated_to=1)))
    page = tmp_path / "page.md"
    page.write_text("<!-- compressed of one -->\n<!-- end -->\n")
    fill(page)
    (line,) = [line for line in page.read_text().splitlines() if "mlet" in line]
    columns = line.strip("| ").split(" | ")
    assert columns[:4] == ["s", "mlet d=16 k=64", "400", "0.8580"]
    assert columns[4].startswith("**-0.0020") and columns[6].startswith("**+0.0080")
    assert columns[5] == "8.0 (d=8, 0.8500)", "the smallest that is as good as the best"


def test_trials_of_several_studies_are_drawn_in_panels(results, command):
    files = [str(results / "results" / f"{study}.jsonl") for study in ("one", "two")]
    target = results / "headline.png"
    code, out, _ = command("frontier", "draw", *files, "--output", str(target))
    assert code == 0
    lines = out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["one", "two", str(target)]
    assert sum("mlet d=4 k=64, constant (2 of 5)" in line for line in lines) == 2
    assert target.read_bytes().startswith(b"\x89PNG")
    code, _, err = command("frontier", "draw", *files, "--best_auc", "0.9", "--output", str(target))
    assert code == 2 and "'--best_auc' is of one study. Received: trials of one, two" in err


def test_a_panel_shows_its_own_range(results):
    """And not everything up to an AUC of 1."""
    figure = plot_headline({"one": groups(read_records(results / "results" / "one.jsonl"))})
    low, high = figure.axes[0].get_ylim()
    assert 0.80 < low < 0.82 and 0.85 < high < 0.88


def test_best_auc_is_a_line_of_one_study(results, command):
    target = Path(results / "one.png")
    file = str(results / "results" / "one.jsonl")
    assert command("frontier", "draw", file, "--best_auc", "0.9", "--output", str(target))[0] == 0
    assert target.exists()
