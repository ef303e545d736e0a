"""TFX's StatisticsGen, a file at a time."""

from components.statistics_gen.component import StatisticsGen

__all__ = ["StatisticsGen"]
