"""Access to TFX's artifacts, shared by several components."""

from collections.abc import Sequence

from mlet_tf.components.types import Artifacts
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.types import artifact_utils
from tfx.utils import io_utils

from mlet_tf.features.examples import example_files
from mlet_tf.storage import join


def split_files(examples: Sequence[types.Artifact], split: str) -> list[str]:
    """Files of one split of Examples artifacts.

    Raises:
        InputError: There are none.
    """
    return example_files(split_patterns(examples, split))


def split_patterns(examples: Sequence[types.Artifact], split: str) -> list[str]:
    """Patterns of the files of one split of Examples artifacts."""
    return [join(uri, "*") for uri in artifact_utils.get_split_uris(list(examples), split)]


def read_schema(input_dict: Artifacts) -> schema_pb2.Schema:
    """Reads the Schema artifact among the inputs of a component."""
    uri = artifact_utils.get_single_uri(input_dict["schema"])
    return io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(uri))
