"""Specification of the baseline trainer."""

from mlet_tf.components import settings
from mlet_tf.components.baseline_trainer import executor
from mlet_tf.components.types import CustomConfig
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types.experimental import simple_artifacts
from tfx.utils import json_utils


class BaselineTrainerSpec(component_spec.ComponentSpec):
    """Inputs, outputs and parameters of `BaselineTrainer`."""

    INPUTS = {
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "transform_graph": component_spec.ChannelParameter(type=standard_artifacts.TransformGraph),
        "compression": component_spec.ChannelParameter(type=simple_artifacts.Metrics),
    }
    OUTPUTS = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "model_run": component_spec.ChannelParameter(type=standard_artifacts.ModelRun),
    }
    PARAMETERS = {
        "custom_config": component_spec.ExecutionParameter(type=str),
        **settings.parameters(),
    }


class BaselineTrainer(base_component.BaseComponent):
    """Trains direct float32 tables of as many bytes as those of the compressed model, with the Trainer's settings.

    Component `outputs` contains:
     - `model`: Channel of `standard_artifacts.Model`, with `baseline.json` inside.
     - `model_run`: Channel of `standard_artifacts.ModelRun`, for TensorBoard.
    """

    SPEC_CLASS = BaselineTrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        transform_graph: types.BaseChannel,
        compression: types.BaseChannel,
        custom_config: CustomConfig,
    ) -> None:
        """Constructs the component.

        Args:
            examples: Examples with splits `train` and `eval`.
            transform_graph: Preprocessing.
            compression: The report of the compressor, which says how many bytes there are.
            custom_config: That of the Trainer.
        """
        super().__init__(
            spec=BaselineTrainerSpec(
                examples=examples,
                transform_graph=transform_graph,
                compression=compression,
                custom_config=json_utils.dumps(custom_config),
                model=types.Channel(type=standard_artifacts.Model),
                model_run=types.Channel(type=standard_artifacts.ModelRun),
                **settings.settings_of(custom_config),
            )
        )
