"""Getting a model to a server and answers from it: push, client, and a stand-in server for development.

Importing this brings neither TensorFlow nor gRPC; what needs them imports them when it is used.
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
