"""Writes the schema."""

from typing import Any

from tfx import types
from tfx.components.schema_gen.executor import DEFAULT_FILE_NAME
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils

from mlet_tf.storage import join


class Executor(base_executor.BaseExecutor):
    """Executor of `ClickLogSchemaGen`."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the schema.

        Args:
            input_dict: Nothing.
            output_dict: `schema`: one Schema artifact.
            exec_properties: `schema_text`, a tensorflow-metadata schema as a text protobuf.
        """
        uri = artifact_utils.get_single_uri(output_dict["schema"])
        io_utils.write_string_file(join(uri, DEFAULT_FILE_NAME), exec_properties["schema_text"])
