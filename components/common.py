"""Access to TFX's artifacts, shared by several components."""

from collections.abc import Sequence

from tfx import types
from tfx.types import artifact_utils

from mlet_tf.features.examples import example_files
from mlet_tf.storage import join


def split_files(examples: Sequence[types.Artifact], split: str) -> list[str]:
    """Files of one split of Examples artifacts.

    Raises:
        InputError: There are none.
    """
    return example_files([join(uri, "*") for uri in artifact_utils.get_split_uris(list(examples), split)])
