"""AUC against bytes: plots of a sweep, and the smallest tables of a trained model that pass a gate."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from mlet_tf import strict_json
from mlet_tf.errors import InputError
from mlet_tf.experiments.comparison import families
from mlet_tf.experiments.statistics import Group

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_COLORS = {
    "direct": "#7a8fa6",
    "direct_rescaled": "#b9c4d0",
    "mlet": "#c8553d",
    "mlet_frozen": "#e2a395",
    "nested": "#8a4fa0",
    "projected": "#5b8c5a",
    "hash": "#c9a227",
    "qr": "#8c6d1f",
}
# Truncations that are drawn; the others only confirm that these are the better ones.
_METHOD_STYLES = {"leading": ":", "allocated": "-.", "fine_tuned": "--", "compressed": "--"}
_REPORT = "frontier.json"
_PANELS_A_ROW = 3


def plot_sweep(groups: Sequence[Group], title: str, best_auc: float | None = None) -> plt.Figure:
    """AUC on test rows against bytes served, a line for each kind of embedding.

    Args:
        groups: Final results of one study, see `statistics.groups`.
        title: Title.
        best_auc: Best reachable AUC, where it is known.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    lines: dict[tuple[str, str, str], list[Group]] = {}
    for group in (group for group in groups if group.values):
        name = "direct_rescaled" if group.record["stage"] == "control" else group.record["kind"]
        method = group.record["method"]
        if method in _METHOD_STYLES:
            lines.setdefault((f"{name} d={group.record['output_dim']}, {method}", name, method), []).append(
                group
            )
        elif method is None:
            lines.setdefault((name, name, ""), []).append(group)
    for (label, name, method), members in sorted(lines.items(), key=lambda item: item[0][2] != ""):
        members.sort(key=lambda group: group.record["bytes"])
        axes.errorbar(
            [group.record["bytes"] / 1024 for group in members],
            [group.mean() for group in members],
            [group.interval() for group in members],
            fmt="o",
            linestyle=_METHOD_STYLES.get(method, "-"),
            color=_COLORS.get(name, "#333333"),
            label=label,
            markersize=3,
            linewidth=1.2,
            capsize=2,
        )
    if best_auc is not None:
        axes.axhline(best_auc, color="#999999", linewidth=0.8, linestyle=(0, (1, 3)), label="best reachable")
    _set_floor(axes, lines.values())
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set(xlabel="KiB of tables served", ylabel="AUC on test rows", title=title)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_headline(studies: Mapping[str, Sequence[Group]]) -> plt.Figure:
    """AUC on test rows against bytes served, a panel for each study and in it a line for each family.

    Of the cells of a family and size the best on validation rows is drawn, with its 95 % interval over the seeds.

    Args:
        studies: Final results by study, see `statistics.groups`.
    """
    columns = min(_PANELS_A_ROW, len(studies))
    rows = math.ceil(len(studies) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.2 * rows + 0.4), layout="constrained", squeeze=False
    )
    drawn: dict[str, Any] = {}
    for panel, (study, found) in zip(axes.flat, studies.items(), strict=False):
        lines = families(found)
        _set_floor(panel, lines.values())
        for family, members in lines.items():
            kind, _, truncated = family.partition(", ")
            drawn[family] = panel.errorbar(
                [group.record["bytes"] / 1024 for group in members],
                [group.mean() for group in members],
                [group.interval() for group in members],
                fmt="o",
                linestyle="--" if truncated else "-",
                color=_COLORS.get(kind, "#333333"),
                markersize=3,
                linewidth=1.2,
                capsize=2,
            )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        panel.set(title=study, xlabel="KiB of tables served", ylabel="AUC on test rows")
        panel.grid(alpha=0.3, linewidth=0.5)
    for panel in axes.flat[len(studies) :]:
        panel.set_axis_off()
    figure.legend(
        list(drawn.values()), list(drawn), frameon=False, ncols=len(drawn), loc="outside lower center"
    )
    return figure


def _set_floor(axes: plt.Axes, lines: Iterable[Sequence[Group]]) -> None:
    """One kind that fails must not flatten the differences between all others; the tables have its numbers."""
    drawn = np.array([group.mean() for members in lines for group in members])
    if len(drawn):
        axes.set_ylim(bottom=max(drawn.min(), 4 * np.median(drawn) - 3 * drawn.max()) - 0.005)


@dataclasses.dataclass(frozen=True)
class Point:
    """A truncated model.

    Attributes:
        method: See `truncation`; None for the model as it was trained.
        columns: Columns kept, by feature.
        bytes: Bytes of the float32 tables.
        auc: AUC on the rows used for the choice.
        held_out_auc: AUC on the other rows.
    """

    method: str | None
    columns: dict[str, int]
    bytes: int
    auc: float
    held_out_auc: float


def pick(points: Sequence[Point], max_auc_drop: float) -> Point:
    """Returns the smallest point whose AUC is at most `max_auc_drop` below that of the first, untruncated one."""
    passing = [point for point in points if points[0].auc - point.auc <= max_auc_drop]
    return min(passing, key=lambda point: (point.bytes, -point.auc))


def plot_points(points: Sequence[Point], chosen: Point, max_auc_drop: float) -> plt.Figure:
    """AUC against bytes of one model's truncations, with the gate and the choice."""
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for method in dict.fromkeys(point.method for point in points[1:]):
        mine = sorted((p for p in points if p.method == method), key=lambda point: point.bytes)
        axes.plot(
            [p.bytes / 1024 for p in mine], [p.held_out_auc for p in mine], "o-", markersize=3, label=method
        )
    axes.plot(points[0].bytes / 1024, points[0].held_out_auc, "s", color="#333333", label="as trained")
    axes.plot(chosen.bytes / 1024, chosen.held_out_auc, "o", markersize=11, fillstyle="none", color="#c8553d")
    axes.axhline(points[0].held_out_auc - max_auc_drop, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set(xlabel="KiB of tables served", ylabel="AUC on held-out rows")
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False, fontsize=8)
    return figure


def shrink_run(
    run_folder: Path, output: Path, max_auc_drop: float, note: Callable[[str], None]
) -> dict[str, Any]:
    """Truncates the tables of a finished pipeline run as far as a gate allows and exports the result.

    Half of the evaluation rows are used for the choice; the AUC is reported on the other half.

    Args:
        run_folder: Output folder of a run.
        output: Folder for the model, the plot and `frontier.json`; must not exist.
        max_auc_drop: Largest AUC drop against the collapsed model of the run.
        note: Called with a line about each step.

    Returns:
        What `frontier.json` holds: `points`, `chosen`, `max_auc_drop`, `model`.

    Raises:
        InputError: If there is no finished run, or `output` exists.
    """
    from mlet_tf.experiments.run_data import load_run
    from mlet_tf.export import save_model

    if output.exists():
        raise InputError(f"{output} exists; give a folder that does not")
    with load_run(run_folder, note) as run:
        points, candidates = _points(run, note)
        if math.isnan(points[0].auc) or math.isnan(points[0].held_out_auc):
            raise InputError(
                f"{run_folder}: expected evaluation rows with clicks and without, found one kind only"
            )
        chosen = pick(points, max_auc_drop)
        from mlet_tf.experiments.truncation import truncated_model

        candidate = candidates[points.index(chosen)]
        model = run.model if candidate is None else truncated_model(run.model, candidate)
        aside = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
        try:
            note(f"exporting {chosen.bytes:,} bytes of tables")
            save_model(model, run.schema, run.transform, str(aside))
            figure = plot_points(points, chosen, max_auc_drop)
            figure.savefig(aside / "frontier.png", dpi=110)
            plt.close(figure)
            report = {
                "max_auc_drop": max_auc_drop,
                "chosen": dataclasses.asdict(chosen),
                "points": [dataclasses.asdict(point) for point in points],
            }
            strict_json.write(aside / _REPORT, report, indent=2)
            aside.rename(output)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return report


def _points(run: Any, note: Callable[[str], None]) -> tuple[list[Point], list[Any]]:
    """The model as it is, then its truncations; and the candidate of each."""
    from mlet_tf.experiments import truncation
    from mlet_tf.experiments.tables import embedding_collection

    collection = embedding_collection(run.model)
    names = [feature.name for feature in collection.features]
    tables = [collection.effective_table(name) for name in names]
    width = collection.output_dim
    sizes = [n for n in _sizes(width) if n < width]
    methods = ("leading", "interaction", "allocated") if run.nested else ("interaction", "allocated")
    moment = truncation.bottom_moment(run.model, run.rows.dense_features[: 1 << 14])
    metrics = functools.partial(truncation.fisher_metrics, run.model, run.rows)
    whole = sum(table.size for table in tables)
    points = [Point(None, dict.fromkeys(names, width), 4 * whole, *run.score())]
    candidates: list[Any] = [None]
    # All of them before the tables are overwritten, since the model is looked at to make them.
    for candidate in list(truncation.candidates(tables, run.counts, sizes, methods, moment, metrics)):
        collection.tables[0].assign(np.concatenate(candidate.restored()))
        columns = dict(zip(names, candidate.columns, strict=True))
        points.append(Point(candidate.method, columns, 4 * candidate.values, *run.score()))
        candidates.append(candidate)
        note(f"{candidate.method} {candidate.size}: {4 * candidate.values:,} bytes, AUC {points[-1].auc:.5f}")
    collection.tables[0].assign(np.concatenate(tables))
    return points, candidates


def _sizes(width: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ..."""
    powers = [1 << i for i in range(width.bit_length())]
    return sorted({*powers, *(3 * p // 2 for p in powers if p > 1)})
