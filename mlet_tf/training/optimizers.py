"""The optimizers of a training: one each for tables, projections and the dense network."""

from typing import Any

import keras

from mlet_tf.config import OptimizerConfig, ScheduleConfig, TablesConfig, TrainConfig
from mlet_tf.optimizers import WarmupDecay, split_optimizer
from mlet_tf.optimizers.names import OPTIMIZERS

GROUPS = ("tables", "projections", "dense")


def make_optimizer(config: TrainConfig, steps: int) -> keras.optimizers.Optimizer:
    """Makes the optimizer of a configuration.

    Args:
        config: The training's part of the configuration.
        steps: Steps of the whole training, for the schedule.
    """
    return split_optimizer(**{name: _rule(getattr(config, name), config.schedule, steps) for name in GROUPS})


def _rule(config: OptimizerConfig, schedule: ScheduleConfig, steps: int) -> keras.optimizers.Optimizer:
    rate: Any = config.learning_rate
    if schedule.decay != "none" or schedule.warmup_steps:
        rate = WarmupDecay(rate, schedule.warmup_steps, schedule.decay, steps)
    start = config.initial_accumulator
    options = {} if start is None else {"initial_accumulator_value": start}
    if isinstance(config, TablesConfig):
        options["rows_exponent"] = config.rows_exponent
    if config.weight_decay:
        options["weight_decay"] = config.weight_decay
    return OPTIMIZERS[config.name](learning_rate=rate, l2=config.l2, **options)
