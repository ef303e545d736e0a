"""Compresses the collapsed model of a run, saves it and reports every size that was tried."""

import json

from absl import logging
from mlet_tf.components.common import split_files, split_patterns
from mlet_tf.components.types import Artifacts, Properties
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils

from mlet_tf.compression.artifacts import CompressionTask, compress_artifacts
from mlet_tf.compression.files import write_files
from mlet_tf.config import CompressConfig, TrainConfig, from_mapping
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.features.transform_graph import TransformGraph
from mlet_tf.training.served_model import write_served_model


class Executor(base_executor.BaseExecutor):
    """Executor of `ModelCompressor`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Compresses the model.

        Args:
            input_dict: `model` (collapsed), `transform_graph` and `examples`, one artifact each.
            output_dict: `compressed_model` gets `Format-Keras` and `Format-Serving`, with warm-up requests inside;
                `report` gets `compression.json` and `frontier.png`.
            exec_properties: `schema`, `compress` and `train`, all JSON; `dense_learning_rate`, which overrides that of
                `train`; `num_oov_buckets`, `warmup_rows`, `work` and `code_version`.

        Raises:
            InputError: The budget cannot be met (the message has the smallest that can), or a setting does not fit.
        """
        train = json.loads(exec_properties["train"])
        train["dense"]["learning_rate"] = exec_properties["dense_learning_rate"]
        task = CompressionTask(
            model=artifact_utils.get_single_uri(input_dict["model"]),
            transform_graph=artifact_utils.get_single_uri(input_dict["transform_graph"]),
            train_files=split_patterns(input_dict["examples"], "train"),
            eval_files=split_patterns(input_dict["examples"], "eval"),
            schema=ClickLogSchema.from_dict(json.loads(exec_properties["schema"])),
            compress=from_mapping(CompressConfig, json.loads(exec_properties["compress"]), "compress"),
            train=from_mapping(TrainConfig, train, "train"),
            num_oov_buckets=exec_properties["num_oov_buckets"],
            code_version=exec_properties["code_version"],
        )
        transform = TransformGraph(task.transform_graph)
        compression = compress_artifacts(task, transform, exec_properties["work"], _note)
        write_served_model(
            compression.model,
            task.schema,
            transform,
            artifact_utils.get_single_uri(output_dict["compressed_model"]),
            split_files(input_dict["examples"], "eval"),
            exec_properties["warmup_rows"],
        )
        write_files(compression.report, artifact_utils.get_single_uri(output_dict["report"]))


def _note(line: str) -> None:
    logging.info("Compression: %s", line)
