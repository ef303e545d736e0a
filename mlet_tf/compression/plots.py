"""AUC against bytes of what a compression tried."""

import matplotlib

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
    key = "auc" if measured else "predicted_loss"
    sizes = [point["bytes"] / 1024 for point in points]
    values = [point[key] for point in points]
    if measured:
        errors = [point["auc_drop_error"] for point in points]
        axes.errorbar(
            sizes, values, errors, fmt="o-", markersize=4, capsize=2, color=_TRIED, label="compressed"
        )
    else:
        axes.plot(sizes, values, "o-", markersize=4, color=_TRIED, label="compressed")
    axes.plot(sizes[0], values[0], "s", color=_PLAIN, label="as trained")
    (chosen,) = (point for point in points if point["chosen"])
    axes.plot(
        chosen["bytes"] / 1024,
        chosen[key],
        "o",
        markersize=11,
        fillstyle="none",
        color=_CHOSEN,
        label=f"chosen, {chosen['ratio']:.3g} times smaller",
    )
    _draw_budget(axes, report)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set(
        xlabel="KiB of tables served",
        ylabel="AUC of the choosing rows" if measured else "predicted rise of the logloss",
    )
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_budget(axes: plt.Axes, report: CompressionReport) -> None:
    budget, before = report["budget"], report["bytes_before"]["rows"]
    style = {"color": "#999999", "linewidth": 0.8, "linestyle": ":", "label": "budget"}
    if "max_auc_drop" in budget:
        axes.axhline(report["points"][0]["auc"] - budget["max_auc_drop"], **style)
    else:
        axes.axvline(budget.get("bytes", before / budget.get("ratio", 1)) / 1024, **style)
