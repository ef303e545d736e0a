"""Raw click logs to sharded tf.Examples, a column at a time."""

from mlet_tf.components.click_log_example_gen.component import ClickLogExampleGen

__all__ = ["ClickLogExampleGen"]
