"""Reads how many bytes the compressed model takes, and trains a direct table of as many."""

from mlet_tf.components.common import split_patterns
from mlet_tf.components.settings import with_settings
from mlet_tf.components.types import Artifacts, Properties
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import json_utils

from mlet_tf import strict_json
from mlet_tf.compression import COMPRESSION_FILE
from mlet_tf.export import SERVING_MODEL
from mlet_tf.storage import join
from mlet_tf.training.baseline import fit_baseline
from mlet_tf.training.processes import TrainingArguments


class Executor(base_executor.BaseExecutor):
    """Executor of `BaselineTrainer`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Trains and exports the baseline.

        Args:
            input_dict: `examples`, `transform_graph` and `compression`, the report of the compressor.
            output_dict: `model` gets the model in both forms, `history.json` and `baseline.json`; `model_run` gets
                TensorBoard's files.
            exec_properties: The settings, which override `custom_config` (JSON).

        Raises:
            InputError: If a setting does not fit.
        """
        report = strict_json.read(
            join(artifact_utils.get_single_uri(input_dict["compression"]), COMPRESSION_FILE)
        )
        arguments = TrainingArguments(
            custom_config=with_settings(json_utils.loads(exec_properties["custom_config"]), exec_properties),
            transform_output=artifact_utils.get_single_uri(input_dict["transform_graph"]),
            train_files=split_patterns(input_dict["examples"], "train"),
            eval_files=split_patterns(input_dict["examples"], "eval"),
            serving_model_dir=join(artifact_utils.get_single_uri(output_dict["model"]), SERVING_MODEL),
            model_run_dir=artifact_utils.get_single_uri(output_dict["model_run"]),
        )
        size = report["bytes_after"]
        fit_baseline(arguments, size["rows"] + size["addresses"])
