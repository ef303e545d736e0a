"""Specification of the model compressor."""

import json

from mlet_tf.components.model_compressor import executor
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types.experimental import simple_artifacts

from mlet_tf.types import JsonObject


class ModelCompressorSpec(component_spec.ComponentSpec):
    """Inputs, outputs and parameters of `ModelCompressor`; the learning rate is one, so that a run can change it."""

    INPUTS = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "transform_graph": component_spec.ChannelParameter(type=standard_artifacts.TransformGraph),
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {
        "compressed_model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "report": component_spec.ChannelParameter(type=simple_artifacts.Metrics),
    }
    PARAMETERS = {
        "schema": component_spec.ExecutionParameter(type=str),
        "compress": component_spec.ExecutionParameter(type=str),
        "train": component_spec.ExecutionParameter(type=str),
        "dense_learning_rate": component_spec.ExecutionParameter(type=float),
        "num_oov_buckets": component_spec.ExecutionParameter(type=int),
        "warmup_rows": component_spec.ExecutionParameter(type=int),
        "work": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }


class ModelCompressor(base_component.BaseComponent):
    """Makes the tables of the collapsed model as small as a budget asks for.

    It tries plans from large to small on evaluation rows that do not judge the result, and fails the run if the budget
    cannot be met. The gate decides whether the compressed model is pushed.
    """

    SPEC_CLASS = ModelCompressorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        transform_graph: types.BaseChannel,
        examples: types.BaseChannel,
        schema: str,
        compress: str,
        train: JsonObject,
        num_oov_buckets: int,
        warmup_rows: int,
        work: str,
        code_version: str,
    ) -> None:
        """Constructs the component.

        Args:
            model: The collapsed model.
            transform_graph: Preprocessing, to pack rows with and to export the model with.
            examples: Examples: `train` says what the tables' rows are worth, half of `eval` chooses the plan.
            schema: JSON of `ClickLogSchema.to_dict()`.
            compress: JSON of the configuration's `compress`.
            train: The configuration's `train`, for fine-tuning.
            num_oov_buckets: OOV buckets of each feature.
            warmup_rows: Rows of the warm-up file inside the exported model.
            work: Folder in which an interrupted run finds its packed rows and finished steps.
            code_version: Changes with the code of this component, so that TFX's cache misses.
        """
        super().__init__(
            spec=ModelCompressorSpec(
                model=model,
                transform_graph=transform_graph,
                examples=examples,
                schema=schema,
                compress=compress,
                train=json.dumps(train),
                dense_learning_rate=train["dense"]["learning_rate"],
                num_oov_buckets=num_oov_buckets,
                warmup_rows=warmup_rows,
                work=work,
                code_version=code_version,
                compressed_model=types.Channel(type=standard_artifacts.Model),
                report=types.Channel(type=simple_artifacts.Metrics),
            )
        )
