"""The executor: ingests the chunks of the log on Beam into one Examples artifact."""

import functools
import logging

from mlet_tf.components.beam import BeamExecutor, run_tasks
from mlet_tf.components.click_log_example_gen.config import from_proto, input_files
from mlet_tf.components.types import Artifacts, Properties
from tfx import types
from tfx.components.example_gen import utils, write_split
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import proto_utils

from mlet_tf.features.ingestion import ingest


class Executor(BeamExecutor):
    """Executor of `ClickLogExampleGen`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Writes the splits of one Examples artifact.

        Args:
            input_dict: Nothing.
            output_dict: `examples`: one Examples artifact; see `ingest` for the content of its folder.
            exec_properties: `input_base` and `input_config`: the files; `output_config`: the names of the splits;
                `custom_config`: an `IngestConfig`.

        Raises:
            InputError: The log is not as described, too many rows are malformed, a split is empty, or the output
                cannot be written.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        inputs, outputs, custom = (
            example_gen_pb2.Input(),
            example_gen_pb2.Output(),
            example_gen_pb2.CustomConfig(),
        )
        proto_utils.json_to_proto(exec_properties[standard_component_specs.INPUT_CONFIG_KEY], inputs)
        proto_utils.json_to_proto(exec_properties[standard_component_specs.OUTPUT_CONFIG_KEY], outputs)
        proto_utils.json_to_proto(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY], custom)
        examples = artifact_utils.get_single_instance(output_dict[standard_component_specs.EXAMPLES_KEY])
        examples.split_names = artifact_utils.encode_split_names(
            utils.generate_output_split_names(inputs, outputs)
        )
        base = exec_properties[standard_component_specs.INPUT_BASE_KEY]
        files = {split.name: input_files(base, split.pattern) for split in inputs.splits}
        run = functools.partial(run_tasks, self._make_beam_pipeline)
        rows = ingest(files, from_proto(custom), run, examples.uri)
        _describe(examples, exec_properties, rows)
        logging.info("Rows: %s", ", ".join(f"{count} {name}" for name, count in rows.items()))


def _describe(examples: types.Artifact, exec_properties: Properties, rows: dict[str, int]) -> None:
    for name, count in rows.items():
        examples.set_int_custom_property(f"rows_{name}", count)
    payload = exec_properties.get(standard_component_specs.OUTPUT_DATA_FORMAT_KEY)
    examples_utils.set_payload_format(examples, payload or example_gen_pb2.FORMAT_TF_EXAMPLE)
    examples_utils.set_file_format(
        examples, write_split.to_file_format_str(example_gen_pb2.FORMAT_TFRECORDS_GZIP)
    )
