"""How requests travel to a model server: over REST, over gRPC, and both for asyncio."""

from mlet_tf.serving.transport.base import Answer, Metadata, Request, ServingError, Settings, Tls

__all__ = ["Answer", "Metadata", "Request", "ServingError", "Settings", "Tls"]
