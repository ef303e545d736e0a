"""What a compression leaves beside its model: the report and the plot of what was tried."""

from pathlib import Path

from matplotlib import pyplot as plt

from mlet_tf import strict_json
from mlet_tf.compression import COMPRESSION_FILE
from mlet_tf.compression.plots import plot_frontier
from mlet_tf.compression.report import CompressionReport
from mlet_tf.storage import join, written_aside

FRONTIER_FILE = "frontier.png"


def write_files(report: CompressionReport, folder: str | Path) -> None:
    """Writes `COMPRESSION_FILE` and `FRONTIER_FILE`.

    Args:
        report: The report of a compression.
        folder: A folder, local or remote.
    """
    strict_json.write(join(str(folder), COMPRESSION_FILE), report, indent=1)
    figure = plot_frontier(report)
    with written_aside(join(str(folder), FRONTIER_FILE)) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
