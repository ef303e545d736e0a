"""TFX's StatisticsGen, a file at a time."""

from mlet_tf.components.statistics_gen.component import StatisticsGen

__all__ = ["StatisticsGen"]
