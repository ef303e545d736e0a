"""Pusher component with this package's executor."""

from mlet_tf.components.pusher import executor
from tfx.components import Pusher
from tfx.dsl.components.base import executor_spec


class AtomicPusher(Pusher):
    """TFX's Pusher; a version appears by a rename, whole or not at all."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)
