"""Writes the schema."""

from mlet_tf.components.types import Artifacts, Properties
from tfx.components.schema_gen.executor import DEFAULT_FILE_NAME
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils

from mlet_tf.storage import join


class Executor(base_executor.BaseExecutor):
    """Executor of `ClickLogSchemaGen`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Writes the schema.

        Args:
            input_dict: Nothing.
            output_dict: `schema`: one Schema artifact.
            exec_properties: `schema_text`, a tensorflow-metadata schema as a text protobuf.
        """
        uri = artifact_utils.get_single_uri(output_dict["schema"])
        io_utils.write_string_file(join(uri, DEFAULT_FILE_NAME), exec_properties["schema_text"])
