"""Plots of a run's report."""

from matplotlib import pyplot as plt

from mlet_tf.report import plot_sizes


def test_a_table_has_a_bar_for_each_of_its_forms_and_the_name_of_its_column():
    """Whatever is in the name of a column."""
    tables = [
        {"name": f"embeddings/{name}", "bytes_before": 10 * size, "bytes_after": 5 * size}
        for name, size in (("domain", 1), ("site/domain", 2))
    ]
    compressed = [{"name": name, "bytes_after": size} for name, size in (("domain", 3), ("site/domain", 4))]
    figure = plot_sizes(tables, compressed)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["site/domain", "domain"]
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert widths == {"uncollapsed": [20, 10], "collapsed": [10, 5], "compressed": [4, 3]}
    plt.close(figure)
