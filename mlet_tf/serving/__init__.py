"""Pushing models, querying servers, and a stand-in server for development.

Importing this package imports neither TensorFlow nor gRPC; functions that need them import them when called.
"""

from mlet_tf.serving.client import AsyncCTRClient, CTRClient
from mlet_tf.serving.push import list_versions, push, rollback
from mlet_tf.serving.server import LocalServer, ServeOptions, find_model_server, run_server
from mlet_tf.serving.transport import ServingError, Tls
from mlet_tf.serving.warmup import write_warmup

__all__ = [
    "AsyncCTRClient",
    "CTRClient",
    "LocalServer",
    "ServeOptions",
    "ServingError",
    "Tls",
    "find_model_server",
    "list_versions",
    "push",
    "rollback",
    "run_server",
    "write_warmup",
]
