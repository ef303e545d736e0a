"""Getting a model to a server and answers from it: push, client, and a stand-in server for development."""

from mlet_tf.serving.push import list_versions, push, rollback
from mlet_tf.serving.warmup import write_warmup

__all__ = ["list_versions", "push", "rollback", "write_warmup"]
