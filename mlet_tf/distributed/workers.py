"""Exchange of tensors between the processes of a training."""

import itertools

import numpy as np
import tensorflow as tf

from mlet_tf.distributed.cluster import Cluster
from mlet_tf.network import bypass_proxy_for_loopback

# A number that TensorFlow's own strategies, which count up from 1, do not reach.
_GROUP_KEY = 1_000_003
_FIRST_INSTANCE = 2_000_003


class Workers:
    """The joined processes of a training, with TensorFlow's collective operations among them.

    A collective waits until every process calls it, so all must call the same ones in the same order, which they do
    if they run the same program. When a process is lost, the others fail with `tf.errors.UnavailableError` about 20 s
    later.

    Args:
        cluster: The processes.
        strategy: The strategy whose construction started TensorFlow's servers; None for a single process.
    """

    def __init__(
        self, cluster: Cluster, strategy: tf.distribute.MultiWorkerMirroredStrategy | None = None
    ) -> None:
        self.size, self.rank, self.is_chief = cluster.size, cluster.rank, cluster.is_chief
        self.strategy = strategy
        self._instances = itertools.count(_FIRST_INSTANCE)
        # In graphs, because some collectives have no eager kernel.
        self._gather_array = tf.function(self.gather, autograph=False)
        self._total_number = tf.function(self.total, autograph=False)

    @classmethod
    def join(cls, cluster: Cluster | None = None) -> "Workers":
        """Starts this process's server and waits for the others.

        Call it before any other use of TensorFlow: collectives are configured when its runtime starts.

        Args:
            cluster: The processes; by default those of `TF_CONFIG`.
        """
        bypass_proxy_for_loopback()
        cluster = Cluster.from_environment() if cluster is None else cluster
        return cls(cluster, tf.distribute.MultiWorkerMirroredStrategy() if cluster.size > 1 else None)

    def total(self, tensor: tf.Tensor) -> tf.Tensor:
        """Sum over all processes of a tensor of one shape."""
        if self.size == 1:
            return tf.convert_to_tensor(tensor)
        return tf.raw_ops.CollectiveReduceV2(
            input=tensor, merge_op="Add", final_op="Id", ordering_token=[], **self._keys()
        )

    def gather(self, tensor: tf.Tensor) -> tf.Tensor:
        """Joins the tensors of all processes, of one shape, along the first axis in the order of the ranks."""
        if self.size == 1:
            return tf.convert_to_tensor(tensor)
        return tf.raw_ops.CollectiveGatherV2(input=tensor, ordering_token=[], **self._keys())

    def exchange(self, tensor: tf.Tensor) -> tf.Tensor:
        """Sends slice i of the first axis, `[size, ...]`, to process i; slice i of the result comes from there."""
        if self.size == 1:
            return tf.convert_to_tensor(tensor)
        return tf.raw_ops.CollectiveAllToAllV2(input=tensor, ordering_token=[], **self._keys())

    def gather_now(self, array: np.ndarray) -> np.ndarray:
        """`gather` of an array, outside of graphs."""
        return self._gather_array(tf.constant(array)).numpy()

    def agree(self, numbers: list[int]) -> list[int]:
        """The numbers that all processes hold; each may pass up to eight, none negative."""
        padded = np.full(8, -1, np.int64)
        padded[: len(numbers)] = numbers
        of_all = self.gather_now(padded).reshape(self.size, -1)
        return sorted(set.intersection(*({int(n) for n in row if n >= 0} for row in of_all)))

    def mean(self, value: float) -> float:
        """Mean of a number over all processes."""
        return float(self._total_number(tf.constant(value, tf.float64))) / self.size

    def wait(self) -> None:
        """Waits until every process is here."""
        self.mean(0.0)

    def _keys(self) -> dict[str, int | str]:
        # Every process traces the same collectives in the same order, so they get the same keys.
        return {
            "group_size": self.size,
            "group_key": _GROUP_KEY,
            "instance_key": next(self._instances),
            "communication_hint": "auto",
        }
