"""AUC against bytes of what a compression tried."""

import matplotlib
import numpy as np

from mlet_tf.compression.report import CompressionReport

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_TRIED, _CHOSEN, _PLAIN = "#c8553d", "#c8553d", "#333333"


def plot_frontier(report: CompressionReport) -> plt.Figure:
    """Draws all sizes that were tried, with the choice and the budget.

    Args:
        report: See `CompressionReport`; of a search without rows to choose on only the bytes are known, and the
            predicted rise of the logloss is drawn.
    """
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    points = report["points"]
    measured = points[0]["auc"] is not None
    sizes = [point["bytes"] / 1024 for point in points]
    values = np.array([point["auc"] if measured else point["predicted_loss"] for point in points], float)
    errors = np.array(
        [point["auc_drop_error"] for point in points], float
    )  # None becomes NaN, which is not drawn.
    axes.errorbar(sizes, values, errors, fmt="o-", markersize=4, capsize=2, color=_TRIED, label="compressed")
    axes.plot(sizes[0], values[0], "s", color=_PLAIN, label="as trained")
    (number,) = (i for i, point in enumerate(points) if point["chosen"])
    chosen = points[number]
    axes.plot(
        sizes[number],
        values[number],
        "o",
        markersize=11,
        fillstyle="none",
        color=_CHOSEN,
        label=f"chosen, {chosen['ratio']:.3g} times smaller",
    )
    _draw_budget(axes, report, values[0])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set(
        xlabel="KiB of tables served",
        ylabel="AUC of the choosing rows" if measured else "predicted rise of the logloss",
    )
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_budget(axes: plt.Axes, report: CompressionReport, auc: float) -> None:
    budget, before = report["budget"], report["bytes_before"]["rows"]
    if "max_auc_drop" in budget:
        line = axes.axhline(auc - budget["max_auc_drop"])
    else:
        line = axes.axvline(budget.get("bytes", before / budget.get("ratio", 1)) / 1024)
    line.set(color="#999999", linewidth=0.8, linestyle=":", label="budget")
