"""Statistics of examples, one Beam element per file."""

import functools
import itertools

import tensorflow as tf
from mlet_tf.components.beam import BeamExecutor, stream_tasks
from mlet_tf.components.common import read_schema, split_files
from mlet_tf.components.types import Artifacts, Properties
from tensorflow_transform.tf_metadata import schema_utils
from tfx import types
from tfx.components.statistics_gen import executor
from tfx.types import artifact_utils, standard_component_specs

from mlet_tf.features.ingestion import read_ingest_report
from mlet_tf.features.statistics import FileSample, merge_statistics, summarize_file
from mlet_tf.storage import join


class Executor(BeamExecutor):
    """Executor of `StatisticsGen`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Writes the statistics of each split, where and as TFX's own executor does.

        Args:
            input_dict: `examples` and `schema`.
            output_dict: `statistics`; if they are of a sample, their custom property `rows_<split>` is the size of
                the split, while the statistics have that of the sample.
            exec_properties: `sample_rate`: share of the rows in the sample; `min_rows`: its smallest size per split.
                A sample needs ClickLogExampleGen's report of the rows.

        Raises:
            RuntimeError: Beam lost a file.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(input_dict[standard_component_specs.EXAMPLES_KEY])
        output = artifact_utils.get_single_instance(output_dict[standard_component_specs.STATISTICS_KEY])
        output.split_names, output.span = examples.split_names, examples.span
        splits = artifact_utils.decode_split_names(examples.split_names)
        rates = dict.fromkeys(splits, 1.0)
        if exec_properties["sample_rate"] < 1:
            for split, rows in _rows(examples, splits).items():
                rates[split] = max(exec_properties["sample_rate"], exec_properties["min_rows"] / rows)
                output.set_int_custom_property(f"rows_{split}", rows)
        tasks = [
            FileSample(split, path, rates[split])
            for split in splits
            for path in split_files([examples], split)
        ]
        spec = schema_utils.schema_as_feature_spec(read_schema(input_dict)).feature_spec
        summarize = functools.partial(summarize_file, spec=spec)
        results = stream_tasks(self._make_beam_pipeline, summarize, tasks, join(output.uri, "staging"))
        pairs = zip(tasks, results, strict=True)
        for split, group in itertools.groupby(pairs, key=lambda pair: pair[0].split):
            content = merge_statistics(accumulators for _, accumulators in group).SerializeToString()
            folder = artifact_utils.get_split_uri([output], split)
            tf.io.gfile.makedirs(folder)
            with tf.io.gfile.GFile(join(folder, executor.DEFAULT_FILE_NAME), "wb") as file:
                file.write(content)


def _rows(examples: types.Artifact, splits: list[str]) -> dict[str, int]:
    rows = read_ingest_report(examples.uri)["rows"]
    return {split: rows[split] for split in splits}
