"""AUC against bytes: plots of sweeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

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
        _set_floor(panel, lines.values())  # Of what is drawn, as it fixes the other end too.
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
