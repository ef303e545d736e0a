"""The report of a run: one self-contained HTML page and its plots as PNG files."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import matplotlib
import numpy as np

from mlet_tf import strict_json
from mlet_tf.gate import GATE_FILE
from mlet_tf.predictions import load_predictions
from mlet_tf.run_file import Run, read_run_file
from mlet_tf.storage import join, writing, written_aside
from mlet_tf.types import JsonObject
from mlet_tf.units import budget_text, bytes_text

if TYPE_CHECKING:
    from mlet_tf.compression.report import CompressionReport, TableReport

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = "report.html"

_COLORS = {
    "uncollapsed": "#7a8fa6",
    "collapsed": "#c8553d",
    "compressed": "#8a4fa0",
    "baseline": "#c9a227",
    "last_blessed": "#5b8c5a",
}
_CALIBRATION_BINS = 10
_MAX_TABLES = 26
_MAX_SPECTRA = 6


def write_report(run_folder: Path, output: Path) -> Path:
    """Writes the page and its plots.

    Args:
        run_folder: Output folder of a run, with `run.json` in it.
        output: Folder to write to.

    Returns:
        Path of the page.

    Raises:
        InputError: If there is no complete run in the folder, or the output cannot be written.
    """
    run = read_run_file(run_folder)
    collapse = strict_json.read(run["artifacts"]["collapse_report"])
    compression: CompressionReport | None = None
    if path := run["artifacts"].get("compression_report"):
        compression = strict_json.read(path)
    gate = strict_json.read(join(run["artifacts"]["evaluation"], GATE_FILE))
    predictions = load_predictions(run["artifacts"]["evaluation"])
    plots: dict[str, Callable[[], plt.Figure]] = {
        "Bytes per table": lambda: plot_sizes(collapse["tables"], compression and compression["tables"]),
        "Training": lambda: plot_training(strict_json.read(run["artifacts"]["history"])),
        "ROC": lambda: plot_roc(predictions),
        "Calibration": lambda: plot_calibration(predictions),
        "Singular values": lambda: plot_spectra(collapse["tables"]),
        "Seconds per component": lambda: plot_seconds(run["seconds"]),
    }
    if compression is not None:
        plots = {"AUC against bytes": lambda: plot_compression(compression, run), **plots}
    figures = {title: draw() for title, draw in plots.items()}
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        images = {title: _save(figure, output, title) for title, figure in figures.items()}
        page = output / PAGE
        with written_aside(page) as file:
            file.write(_render(run, gate, collapse, compression, images).encode())
    return page


def plot_sizes(tables: Sequence[JsonObject], compressed: Sequence[TableReport] | None = None) -> plt.Figure:
    """Bytes of each table before and after the collapse and the compression, largest first, on a log axis.

    Args:
        tables: Those of the collapse's report.
        compressed: Those of the compression's, where there is one.
    """
    largest = sorted(tables, key=lambda table: -table["bytes_before"])[:_MAX_TABLES]
    bars = {
        "uncollapsed": [table["bytes_before"] for table in largest],
        "collapsed": [table["bytes_after"] for table in largest],
    }
    if compressed is not None:
        after = {table["name"]: table["bytes_after"] for table in compressed}
        bars["compressed"] = [after[_short(table)] for table in largest]
    figure, axes = _axes(8, (0.08 + 0.08 * len(bars)) * len(largest) + 1.2)
    places, width = np.arange(len(largest)), 0.8 / len(bars)
    for number, (label, values) in enumerate(bars.items()):
        axes.barh(places + width * number, values, 0.95 * width, label=label, color=_COLORS[label])
    axes.set(
        yticks=places + width * (len(bars) - 1) / 2,
        yticklabels=[_short(table) for table in largest],
        xscale="log",
        xlabel="bytes",
    )
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


def plot_training(history: Sequence[Mapping[str, float | None]]) -> plt.Figure:
    """Logloss in training and evaluation, and evaluation AUC, by epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    epochs = [record["epoch"] for record in history]
    loss, eval_logloss, eval_auc = (
        np.array([record[key] for record in history], float)  # None becomes NaN, which is not drawn.
        for key in ("loss", "eval_logloss", "eval_auc")
    )
    left.plot(epochs, loss, "o-", label="train", color=_COLORS["uncollapsed"])
    left.plot(epochs, eval_logloss, "o-", label="eval", color=_COLORS["collapsed"])
    left.set(xlabel="epoch", ylabel="logloss", xticks=epochs)
    left.legend(frameon=False)
    right.plot(epochs, eval_auc, "o-", color=_COLORS["collapsed"])
    right.set(xlabel="epoch", ylabel="eval AUC", xticks=epochs)
    return figure


def plot_compression(compression: CompressionReport, run: Run) -> plt.Figure:
    """AUC on the rows that chose against bytes: what was tried, the budget, the choice, and the direct baseline.

    The baseline was scored on the rows that judge; it is drawn as far below the collapsed model as it was there.

    Args:
        compression: The compression's report.
        run: The run.
    """
    from mlet_tf.compression.plots import plot_frontier  # It brings Keras, which other reports do without.

    figure = plot_frontier(compression)
    results, baseline = run["compression"], run["baseline"]
    if results is None or baseline is None:
        return figure
    before, trained, reached = compression["auc_before"], results["auc_before"], baseline["auc"]
    if before is not None and trained is not None and reached is not None:
        axes = figure.axes[0]
        label = f"direct table of d={baseline['output_dim']}, by the rows that judge"
        auc = before + reached - trained
        axes.plot(baseline["bytes"] / 1024, auc, "D", color=_COLORS["baseline"], label=label)
        axes.legend(frameon=False, fontsize=8)
    return figure


def plot_roc(predictions: Mapping[str, np.ndarray]) -> plt.Figure:
    """ROC curve of every evaluated model."""
    figure, axes = _axes(4.5, 4.2)
    label = predictions["label"] > 0
    for model, ctr in _models(predictions):
        order = np.argsort(-ctr, kind="stable")
        true = np.cumsum(label[order]) / max(1, label.sum())
        false = np.cumsum(~label[order]) / max(1, (~label).sum())
        width = 4 if model == "uncollapsed" else 1.5  # Both curves stay visible when they coincide.
        axes.plot(false, true, label=model, color=_COLORS[model], linewidth=width)
    axes.plot([0, 1], [0, 1], ":", color="#999999")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(frameon=False)
    return figure


def plot_calibration(predictions: Mapping[str, np.ndarray]) -> plt.Figure:
    """Mean label against mean prediction, in bins of equally many rows."""
    figure, axes = _axes(4.5, 4.2)
    label, top = predictions["label"], 0.0
    for model, ctr in _models(predictions):
        bins = np.array_split(np.argsort(ctr, kind="stable"), min(_CALIBRATION_BINS, len(ctr)))
        points = np.array([(ctr[rows].mean(), label[rows].mean()) for rows in bins])
        size = 9 if model == "uncollapsed" else 5
        axes.plot(points[:, 0], points[:, 1], "o-", label=model, color=_COLORS[model], markersize=size)
        top = max(top, points.max())
    axes.plot([0, top], [0, top], ":", color="#999999")
    axes.set(xlabel="mean prediction", ylabel="CTR")
    axes.legend(frameon=False)
    return figure


def plot_spectra(tables: Sequence[JsonObject]) -> plt.Figure:
    """Singular values of the largest collapsed tables, relative to the first of each."""
    figure, axes = _axes(6, 3.2)
    spectra = [table for table in tables if table.get("singular_values")]
    for table in sorted(spectra, key=lambda table: -table["rows"])[:_MAX_SPECTRA]:
        values = np.array(table["singular_values"])
        axes.plot(
            np.arange(1, len(values) + 1),
            values / max(values[0], 1e-30),
            "o-",
            markersize=3,
            label=_short(table),
        )
    axes.set(xlabel="index", ylabel="singular value / first", yscale="log")
    if spectra:
        axes.legend(frameon=False)
    return figure


def plot_seconds(seconds: Mapping[str, float]) -> plt.Figure:
    """Wall time of each component, in the order they ran."""
    figure, axes = _axes(8, 0.28 * len(seconds) + 1)
    bars = axes.barh(list(seconds), list(seconds.values()), color=_COLORS["uncollapsed"])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set(xlabel="seconds")
    axes.invert_yaxis()
    return figure


def _short(table: JsonObject) -> str:
    """A table's name without the layer's; that of its feature may have slashes too."""
    layer, _, feature = table["name"].partition("/")
    return feature or layer


def _axes(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    return plt.subplots(figsize=(width, height), layout="constrained")


def _models(predictions: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return [(model, predictions[f"ctr.{model}"]) for model in _COLORS if f"ctr.{model}" in predictions]


def _save(figure: plt.Figure, output: Path, title: str) -> str:
    """Saves a PNG and returns it as a data URI, so that the page needs no other file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    (output / f"{title.lower().replace(' ', '_')}.png").write_bytes(buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: float | None, digits: int) -> str:
    """A metric; JSON has null for metrics that are not numbers."""
    return "undefined" if value is None else f"{value:.{digits}f}"


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _render(
    run: Run,
    gate: JsonObject,
    collapse: JsonObject,
    compression: CompressionReport | None,
    images: Mapping[str, str],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mlet_tf"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": bytes_text, "number": _number, "bound": _bound, "budget": budget_text}
    return environment.get_template(PAGE).render(
        run=run, gate=gate, collapse=collapse, compression=compression, images=images
    )
