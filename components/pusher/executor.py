"""Executor for TFX's Pusher that pushes atomically; see `mlet_tf.serving.push`."""

import hashlib
import json

from absl import logging
from mlet_tf.components.types import Artifacts, Properties
from tfx.components.pusher import executor
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils
from tfx.utils import proto_utils

from mlet_tf.serving import list_versions, push
from mlet_tf.storage import join, open_binary, tree


class Executor(executor.Executor):
    """TFX's Pusher with consecutive integer versions and a rename as the last step; old versions are removed."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Pushes a blessed model; see TFX's own executor for the keys.

        Args:
            input_dict: `model`, `model_blessing` and `infra_blessing`.
            output_dict: `pushed_model`, which records path and version.
            exec_properties: `push_destination` with a file-system base directory, and `custom_config`
                (JSON) with `keep`, the number of versions to keep.
        """
        pushed = artifact_utils.get_single_instance(output_dict["pushed_model"])
        if not self.CheckBlessing(input_dict):
            logging.warning("The model is not blessed and is not pushed.")
            self._MarkNotPushed(pushed)
            return
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties["push_destination"], destination)
        keep = json.loads(exec_properties["custom_config"])["keep"]
        base, model = destination.filesystem.base_directory, self.GetModelPath(input_dict)
        newest = next(reversed(list_versions(base).values()), None)
        if newest and _digest(newest) == _digest(model):
            # A repeated gate on the same model is no reason for servers to swap.
            logging.info("The newest version has this model already.")
            path = newest
        else:
            path = push(model, base, keep=keep)
        self._MarkPushed(pushed, pushed_destination=path)


def _digest(folder: str) -> dict[str, str]:
    """SHA-256 of each file below a folder, by relative path."""
    digests = {}
    for name in tree(folder):
        with open_binary(join(folder, name)) as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
