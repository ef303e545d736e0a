"""Fills the tables and plots of docs/results.md from stored trials.

    python -m mlet_tf.experiments.results docs/results.md

The page holds pairs of comments `<!-- NAME of STUDY -->` and `<!-- end -->`; what stands between is replaced. NAME is
`cells`, `same size`, `variants`, `chosen`, `claim`, `one training`, `frequency`, `matches` or `compressed`. The last
two may be of several studies, `<!-- matches of A, B -->`. The trials of STUDY are in `results/STUDY.jsonl` beside the
page. Its plot is written to `results/STUDY.png`, and that of all studies of the page to `results/headline.png`, where
the page shows them.
"""

from __future__ import annotations

import collections
import functools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from mlet_tf.errors import InputError
from mlet_tf.experiments.comparison import Match, band_differences, best_on_validation, matches, paired
from mlet_tf.experiments.frontier import plot_headline, plot_sweep
from mlet_tf.experiments.statistics import Difference, Group, groups, label
from mlet_tf.experiments.store import read_records
from mlet_tf.storage import written_aside

TOLERANCE = 0.0005
_BLOCK = re.compile(
    r"(<!-- (cells|same size|variants|chosen|claim|one training|frequency|matches|compressed) of (\w+(?:, \w+)*) -->\n)"
    r".*?(<!-- end -->)",
    re.DOTALL,
)
_PLOT_DPI = 90
_PLAIN = {
    "initialization": (None, "fixed_variance"),
    "optimizer": ("adagrad",),
    "dtype": ("float32",),
    "hidden_dim": (None, 64),
    "hidden_scale": (None,),
    "settings": ((),),
}


def fill(page: Path) -> None:
    """Rewrites the blocks of the page and the plots of the studies it names.

    Raises:
        InputError: If the results of a study are missing.
    """
    text, folder = page.read_text(), page.parent / "results"
    names = dict.fromkeys(name for _, _, of, _ in _BLOCK.findall(text) for name in of.split(", "))
    studies = {name: groups(read_records(folder / f"{name}.jsonl")) for name in names}
    for name, found in studies.items():
        _draw(folder / f"{name}.png", text, functools.partial(plot_sweep, found, name))
    _draw(folder / "headline.png", text, lambda: plot_headline(studies))

    def block(match: re.Match[str]) -> str:
        found = [group for name in match[3].split(", ") for group in studies[name]]
        return f"{match[1]}\n{_TABLES[match[2]](found)}\n\n{match[4]}"

    filled = _BLOCK.sub(block, text)
    with written_aside(page) as file:
        file.write(filled.encode())


def _draw(path: Path, page: str, plot: Callable[[], plt.Figure]) -> None:
    """Writes a plot that the page shows."""
    if f"results/{path.name}" in page:
        figure = plot()
        figure.savefig(path, dpi=_PLOT_DPI)
        plt.close(figure)


def reference(found: Sequence[Group]) -> Group:
    """The tuned direct baseline: the smallest direct cell that is as good as the best of them.

    The best is that of the highest AUC on validation rows, as good is a mean difference of at most `TOLERANCE`.
    """
    direct = [g for g in found if g.matches(kind="direct", stage="final", method=None) and g.values]
    best = max(direct, key=lambda group: group.mean(split="validation"))
    good = [g for g in direct if best.mean(split="validation") - g.mean(split="validation") <= TOLERANCE]
    return min(good, key=lambda group: group.record["bytes"])


def cells_table(found: Sequence[Group]) -> str:
    """Every cell as it was trained."""
    rows = []
    for group in sorted(
        (g for g in found if g.record["method"] is None), key=lambda g: (g.record["bytes"], g.label)
    ):
        record = group.record
        rare = group.by_seed(split="test_rare")
        edge = " (edge)" if "train.tables.learning_rate" in record.get("at_edge", ()) else ""
        rows.append(
            [
                group.label,
                f"{record['bytes']:,}",
                f"{record['learning_rates']['tables']:g}{edge}",
                _with_fault(f"{group.mean():.4f} ± {group.interval():.4f}", group),
                f"{group.mean('logloss'):.4f}",
                f"{group.mean('normalized_entropy'):.4f}",
                f"{group.mean(split='test_rare'):.4f}" if rare else "",
                f"{record['train_cpu_seconds']:.0f}",
            ]
        )
    heads = ["embedding", "bytes", "table rate", "AUC", "logloss", "NE", "AUC, rare ids", "CPU s"]
    return _table(heads, rows)


def same_size_table(found: Sequence[Group]) -> str:
    """Each kind against the tuned direct table of the same `d`."""
    rows = []
    for direct in found:
        if not direct.matches(kind="direct", stage="final", method=None):
            continue
        for other in found:
            same = other.record["output_dim"] == direct.record["output_dim"] and other is not direct
            if same and other.record["method"] is None:
                gaps = [_signed(paired(other, direct, split)) for split in ("test", "test_rare")]
                rows.append([_with_fault(other.label, other), *gaps])
    return _table(["embedding", "AUC against tuned direct, same d", "on rare ids"], rows)


def variants_table(found: Sequence[Group]) -> str:
    """Each cell that departs from `_PLAIN` against those of the same size that do not: of its kind, and direct."""

    def is_plain(group: Group) -> bool:
        return all(group.record[key] in values for key, values in _PLAIN.items())

    finals = [group for group in found if group.matches(stage="final", method=None)]
    plain = {(g.record["kind"], g.record["output_dim"]): g for g in finals if is_plain(g)}
    rows = []
    for (kind, d), own in plain.items():
        for group in finals:
            if group.matches(kind=kind, output_dim=d) and group is not own:
                gaps = [_signed(paired(group, other)) for other in (own, plain.get(("direct", d)))]
                rows.append([group.label, own.label, *gaps])
    return _table(["embedding", "against", "AUC", "AUC against tuned direct, same d"], rows)


def chosen_table(found: Sequence[Group]) -> str:
    """Of each kind and size the cell with the highest AUC on validation rows, and how it compares on test rows."""
    finals = [group for group in found if group.matches(stage="final", method=None)]

    def size(group: Group) -> tuple[int, str]:
        return group.record["output_dim"], group.record["kind"]

    best, tried = best_on_validation(finals, size), collections.Counter(map(size, finals))
    rows = []
    for (d, kind), group in sorted(best.items()):
        gap = None if kind == "direct" else paired(group, best.get((d, "direct")))
        count = str(tried[d, kind])
        rows.append([str(d), kind, count, group.label, f"{group.mean():.4f}", _signed(gap)])
    heads = ["d", "kind", "cells tried", "best on validation rows", "AUC", "against the best direct"]
    return _table(heads, rows)


def claim_table(found: Sequence[Group]) -> str:
    """The smallest of each family that is as good as the tuned direct baseline."""
    base = reference(found)
    families: dict[str, list[Group]] = {}
    for group in found:
        if group.record["stage"] == "final" and group.record["method"] not in ("common", "per_table"):
            families.setdefault(_family(group), []).append(group)
    rows = []
    for family, members in families.items():
        gaps = [(group, paired(group, base)) for group in members if group is not base]
        pairs = [(group, gap) for group, gap in gaps if gap is not None]
        good = [pair for pair in pairs if pair[1].mean >= -TOLERANCE]
        if not pairs:
            continue
        if good:
            group, gap = min(good, key=lambda pair: pair[0].record["bytes"])
        else:
            group, gap = max(pairs, key=lambda pair: pair[1].mean)
        ratio = base.record["bytes"] / group.record["bytes"]
        claim = "yes" if good and ratio >= 4 else "no"
        size = _size(group) + ("" if good else " (closest)")
        rows.append([family, size, f"{group.record['bytes']:,}", f"{ratio:.2f}", _signed(gap), claim])
    heads = [
        "family",
        "smallest as good",
        "bytes",
        f"times smaller than {base.label} ({base.record['bytes']:,})",
        "AUC difference",
        "4 times at equal AUC",
    ]
    return _table(heads, rows)


def one_training_table(found: Sequence[Group]) -> str:
    """Sizes taken from one training against the tuned direct table of about the same bytes."""
    direct = {
        g.record["output_dim"]: g for g in found if g.matches(kind="direct", stage="final", method=None)
    }
    rows = []
    for group in sorted(
        (g for g in found if g.record["method"] and g.record["truncated_to"] in direct),
        key=lambda g: (g.record["truncated_to"], g.record["kind"], g.record["method"]),
    ):
        n = group.record["truncated_to"]
        source = f"{group.record['kind']} d={group.record['output_dim']}"
        gap = paired(group, direct[n])
        within = "yes" if gap is not None and gap.mean >= -TOLERANCE else "no"
        size = f"{group.record['bytes']:,}"
        rows.append(
            [str(n), source, group.record["method"], size, f"{group.mean():.4f}", _signed(gap), within]
        )
    heads = [
        "d",
        "from one training of",
        "columns",
        "bytes",
        "AUC",
        "against tuned direct of d",
        "within 0.0005",
    ]
    return _table(heads, rows)


def frequency_table(found: Sequence[Group]) -> str:
    """The best MLET cell against the best direct one of the same `d`, by how often an id was seen in training."""
    rows = [
        [
            str(one.output_dim),
            one.feature,
            one.band,
            f"{one.rows:,}",
            f"{one.direct:.4f}",
            _signed(one.gap),
        ]
        for one in band_differences(found)
    ]
    return _table(
        ["d", "feature", "ids seen", "test rows", "AUC, direct", "MLET against direct, same d"], rows
    )


def matches_table(found: Sequence[Group]) -> str:
    """The direct `d` that is as good as each `d` of MLET, of one study or several; see `comparison.Match`."""
    rows = []
    for study in dict.fromkeys(group.record["study"] for group in found):
        for match in matches([group for group in found if group.record["study"] == study]):
            mlet = match.mlet
            auc = f"{mlet.mean():.4f} ± {mlet.interval():.4f}"
            sizes = [_direct_size(match, group) for group in (match.direct, match.no_lower)]
            gaps = [_signed(gap) for gap in (match.gap, match.rare)]
            rows.append([study, str(mlet.record["output_dim"]), auc, sizes[0], gaps[0], sizes[1], gaps[1]])
    heads = [
        "data set",
        "MLET d",
        "AUC",
        "direct d as good (times MLET's bytes)",
        "its AUC against MLET's",
        "direct d with no lower mean",
        "MLET on rare ids, against direct of its d",
    ]
    return _table(heads, rows)


def _direct_size(match: Match, direct: Group | None) -> str:
    """`d` of a direct cell and how many times MLET's bytes it serves; what is known where there is none."""
    chosen = direct or match.largest
    times = f"{chosen.record['bytes'] / match.mlet.record['bytes']:.2f}"
    d = chosen.record["output_dim"]
    return f"{d} ({times})" if direct else f"none up to {d} (> {times})"


def compressed_table(found: Sequence[Group]) -> str:
    """Each compressed model against the tuned direct baseline in float32, see `reference`, of one study or several."""
    rows = []
    for study in dict.fromkeys(group.record["study"] for group in found):
        own = [group for group in found if group.record["study"] == study]
        base = reference(own)
        whole = {group.label: group for group in own if group.matches(stage="final", method=None)}
        for group in (group for group in own if group.matches(method="compressed")):
            source = whole[label(group.record | {"method": None})]
            size = group.record["bytes"]
            rows.append(
                [
                    study,
                    source.label,
                    f"{size:,}",
                    f"{group.mean():.4f}",
                    _signed(paired(group, source)),
                    f"{base.record['bytes'] / size:.1f} (d={base.record['output_dim']}, {base.mean():.4f})",
                    _signed(paired(group, base)),
                ]
            )
    heads = [
        "data set",
        "compressed from",
        "bytes",
        "AUC",
        "against what it was made from",
        "times fewer bytes than the best direct",
        "AUC against the best direct",
    ]
    return _table(heads, rows)


_TABLES: dict[str, Callable[[Sequence[Group]], str]] = {
    "cells": cells_table,
    "same size": same_size_table,
    "variants": variants_table,
    "chosen": chosen_table,
    "claim": claim_table,
    "one training": one_training_table,
    "frequency": frequency_table,
    "matches": matches_table,
    "compressed": compressed_table,
}


def _family(group: Group) -> str:
    method = group.record["method"]
    if method is None:
        return group.record["kind"]
    return f"{group.record['kind']} d={group.record['output_dim']}, {method}"


def _size(group: Group) -> str:
    return (
        f"d={group.record['output_dim'] if group.record['method'] is None else group.record['truncated_to']}"
    )


def _with_fault(text: str, group: Group) -> str:
    """The text, and how many seeds have learned nothing, which it leaves out."""
    return f"{text}, {group.fault}" if group.values and group.fault else group.fault or text


def _signed(value: Difference | None) -> str:
    """The difference and its 95 % interval; bold where that leaves zero out."""
    if value is None:
        return ""
    text = f"{value.mean:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"
    return f"**{text}**" if value.is_clear else text


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Fills the pages named on the command line."""
    try:
        for page in sys.argv[1:]:
            fill(Path(page))
    except InputError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
