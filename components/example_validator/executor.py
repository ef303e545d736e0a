"""Validates statistics and raises on anomalies."""

import json

from mlet_tf.components.common import read_schema
from mlet_tf.components.types import Artifacts, Properties
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.components.example_validator import executor
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.io import fileio
from tfx.proto.orchestration import execution_result_pb2
from tfx.types import artifact_utils
from tfx.utils import io_utils

from mlet_tf.errors import GateError
from mlet_tf.features.validation import describe_anomalies, drift_anomalies


class Executor(executor.Executor):
    """TFX's executor, followed by a check of drift between `train` and `eval` and a verdict."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> execution_result_pb2.ExecutorOutput:
        """Validates; see TFX's own executor for the keys.

        Raises:
            GateError: The data have anomalies; the message names split, column and anomaly.
        """
        result = super().Do(input_dict, output_dict, exec_properties)
        anomalies = artifact_utils.get_single_instance(output_dict["anomalies"])
        problems = []
        statistics = artifact_utils.get_single_instance(input_dict["statistics"])
        for split in json.loads(anomalies.split_names):
            path = io_utils.get_only_uri_in_dir(artifact_utils.get_split_uri([anomalies], split))
            with fileio.open(path, "rb") as file:
                found = anomalies_pb2.Anomalies.FromString(file.read())
            problems += describe_anomalies(split + _sampled(statistics, split), found)
        compared = f"eval{_sampled(statistics, 'eval')} against train{_sampled(statistics, 'train')}"
        problems += describe_anomalies(compared, self._drift(input_dict))
        if problems:
            raise GateError("the data do not fit their schema:\n  " + "\n  ".join(problems))
        return result

    def _drift(self, input_dict: dict[str, list[types.Artifact]]) -> anomalies_pb2.Anomalies:
        """Anomalies of `eval` that come from comparing it with `train`."""
        statistics = artifact_utils.get_single_instance(input_dict["statistics"])
        evaluation, train = (
            stats_artifact_utils.load_statistics(statistics, split).proto() for split in ("eval", "train")
        )
        return drift_anomalies(evaluation, train, read_schema(input_dict))


def _sampled(statistics: types.Artifact, split: str) -> str:
    """A note if the statistics are of a sample."""
    total = statistics.get_int_custom_property(f"rows_{split}")
    (dataset,) = stats_artifact_utils.load_statistics(statistics, split).proto().datasets
    if not total or dataset.num_examples == total:
        return ""
    return f" (a sample: {int(dataset.num_examples):,} of {total:,} rows, by validation.sample_rate)"
