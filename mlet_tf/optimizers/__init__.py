"""Optimizers that update only the rows of a table that a batch touches.

On TensorFlow a `tf.IndexedSlices` gradient changes its rows in place, at a cost that does not grow with the
table; Keras's own Adagrad and Adam make such a gradient dense first. On the JAX and torch backends the
gradients are dense already, and the same formulas are applied to them.
"""

from mlet_tf.optimizers.adagrad import RowWiseAdagrad, SparseAdagrad
from mlet_tf.optimizers.adam import LazyAdam
from mlet_tf.optimizers.schedule import WarmupDecay
from mlet_tf.optimizers.sgd import SparseSGD
from mlet_tf.optimizers.split import split_optimizer

__all__ = ["LazyAdam", "RowWiseAdagrad", "SparseAdagrad", "SparseSGD", "WarmupDecay", "split_optimizer"]
