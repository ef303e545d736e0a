"""Optimizers by the names that configurations use."""

from mlet_tf.optimizers.adagrad import RowWiseAdagrad, SparseAdagrad
from mlet_tf.optimizers.adam import LazyAdam
from mlet_tf.optimizers.base import SparseOptimizer
from mlet_tf.optimizers.sgd import SparseSGD

OPTIMIZERS: dict[str, type[SparseOptimizer]] = {
    "sgd": SparseSGD,
    "adagrad": SparseAdagrad,
    "row_wise_adagrad": RowWiseAdagrad,
    "lazy_adam": LazyAdam,
}
