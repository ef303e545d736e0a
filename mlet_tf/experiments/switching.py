"""MLET for the first share of the steps, then the direct model that it collapses to.

It tells whether the factors help in the whole training or at its beginning only. The collapse is exact, so the second
part begins with the predictions that the first one ended with. The dense network's optimizer keeps its state, and all
rates go on in their schedule. The state of the tables starts anew, as that of a factor is not that of the product:
with an Adagrad the first steps of each row are as large as at the start of training; with SGD, which has no state,
nothing but the factors changes.
"""

import keras

from mlet_tf.collapse import collapse_model
from mlet_tf.config import TrainConfig
from mlet_tf.optimizers.split import SplitOptimizer
from mlet_tf.training.build import compile_model
from mlet_tf.training.checkpoints import Progress
from mlet_tf.training.loop import EpochBatches, fit_epochs


def fit_and_collapse(
    model: keras.Model, batches: EpochBatches, epoch_steps: int, steps: int, share: float, config: TrainConfig
) -> tuple[keras.Model, Progress]:
    """Trains for a share of the steps and collapses.

    Args:
        model: A compiled model.
        batches: The training rows.
        epoch_steps: Steps of an epoch.
        steps: Steps of the whole training.
        share: Share of all steps, between 0 and 1, before the collapse.
        config: The training's part of the configuration.

    Returns:
        The collapsed model, compiled in the same way, and where its training goes on.
    """
    switch = min(max(1, round(share * steps)), steps - 1)  # Each model has a step.
    fit_epochs(model, batches, epoch_steps, switch, Progress())
    epoch, step = divmod(switch, epoch_steps)
    return collapse_and_compile(model, config, steps), Progress(epoch=epoch, step=step)


def collapse_and_compile(model: keras.Model, config: TrainConfig, steps: int) -> keras.Model:
    """Returns the collapsed model, compiled, with the state of the dense network's optimizer.

    Args:
        model: A compiled and trained model, whose optimizer is a `SplitOptimizer`.
        config: The training's part of the configuration.
        steps: Steps of the whole training.
    """
    collapsed = collapse_model(model)
    compile_model(collapsed, config, steps)
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
