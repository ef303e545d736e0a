"""Training by several processes: the cluster, exchange of tensors, tables divided by rows.

`TF_CONFIG` names the processes. `Workers.join` starts it; every process then runs the same program
on its part of each batch. Dense gradients are averaged (`AveragingOptimizer`); tables are divided by rows
(`RowShardedEmbeddings`).
"""

from mlet_tf.distributed.cluster import Cluster
from mlet_tf.distributed.models import build_sharded_dlrm, gather_model
from mlet_tf.distributed.optimizer import AveragingOptimizer, averaged
from mlet_tf.distributed.sharded_embeddings import RowShardedEmbeddings
from mlet_tf.distributed.workers import Workers

__all__ = [
    "AveragingOptimizer",
    "Cluster",
    "RowShardedEmbeddings",
    "Workers",
    "averaged",
    "build_sharded_dlrm",
    "gather_model",
]
