"""What a compression leaves beside its model: the report and the plot of what was tried."""

from pathlib import Path

from matplotlib import pyplot as plt
from mlet_tf.compression.plots import plot_frontier

from mlet_tf import strict_json
from mlet_tf.compression import COMPRESSION_FILE
from mlet_tf.types import JsonObject

FRONTIER_FILE = "frontier.png"


def write_files(report: JsonObject, folder: Path) -> None:
    """Writes `COMPRESSION_FILE` and `FRONTIER_FILE`.

    Args:
        report: The report of a compression.
        folder: A local folder.
    """
    strict_json.write(folder / COMPRESSION_FILE, report, indent=1)
    figure = plot_frontier(report)
    figure.savefig(folder / FRONTIER_FILE, dpi=110)
    plt.close(figure)
