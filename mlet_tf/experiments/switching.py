"""MLET for the first share of the steps, then the direct model that it collapses to.

It tells whether the factors help in the whole training or at its beginning only. The collapse is exact, so the second
part begins with the predictions that the first one ended with. The dense network's optimizer keeps its state, and all
rates go on in their schedule. The state of the tables starts anew, as that of a factor is not that of the product:
with an Adagrad the first steps of each row are as large as at the start of training; with SGD, which has no state,
nothing but the factors changes.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from mlet_tf.collapse import collapse_model
from mlet_tf.config import TrainConfig
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.optimizers.split import SplitOptimizer
from mlet_tf.training.checkpoints import Progress
from mlet_tf.training.loop import fit_epochs, steps_an_epoch, total_steps


def fit(
    model: keras.Model,
    rows: PackedRows,
    config: TrainConfig,
    share: float,
    compile_model: Callable[[keras.Model], None],
) -> keras.Model:
    """Trains, collapses after a share of the steps, and trains on.

    Args:
        model: A compiled model.
        rows: The training rows, which come in the order that they have without a collapse.
        config: Batch size, epochs, steps and seed.
        share: Share of all steps, between 0 and 1, before the collapse.
        compile_model: Compiles the collapsed model as the first one was compiled.

    Returns:
        The collapsed model, trained.
    """
    epoch_steps, steps = steps_an_epoch(rows.rows, config.batch_size), total_steps(config, rows.rows)
    switch = max(1, round(share * steps))

    def batches(epoch: int, step: int) -> tf.data.Dataset:
        return rows.permuted_batches(config.batch_size, (config.seed, epoch), step)

    fit_epochs(model, batches, epoch_steps, switch, Progress())
    collapsed = collapse_and_compile(model, compile_model)
    epoch, step = divmod(switch, epoch_steps)
    fit_epochs(collapsed, batches, epoch_steps, steps, Progress(epoch=epoch, step=step))
    return collapsed


def collapse_and_compile(model: keras.Model, compile_model: Callable[[keras.Model], None]) -> keras.Model:
    """Returns the collapsed model, compiled, with the state of the dense network's optimizer.

    Args:
        model: A compiled and trained model, whose optimizer is a `SplitOptimizer`.
        compile_model: Compiles the collapsed model in the same way.
    """
    collapsed = collapse_model(model)
    compile_model(collapsed)
    collapsed.optimizer.build(collapsed.trainable_variables)
    _carry_over(model.optimizer, collapsed.optimizer)
    return collapsed


def _carry_over(trained: SplitOptimizer, fresh: SplitOptimizer) -> None:
    """Copies what has a meaning without the factors: the counters of steps, and the state of the dense network."""
    pairs = [(trained, fresh), *zip(trained.optimizers, fresh.optimizers, strict=True)]
    for source, target in pairs:
        target.iterations.assign(source.iterations)
    dense = trained.of_role("dense").variables, fresh.of_role("dense").variables
    for source, target in zip(*dense, strict=True):
        target.assign(source)
