"""Specification of the trainer."""

from mlet_tf.components import settings
from mlet_tf.components.trainer import executor
from mlet_tf.components.types import CustomConfig
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.proto import trainer_pb2
from tfx.types import standard_artifacts, standard_component_specs
from tfx.utils import json_utils


class TrainerSpec(standard_component_specs.TrainerSpec):
    """TFX's specification with a parameter for each setting."""

    PARAMETERS = {
        **standard_component_specs.TrainerSpec.PARAMETERS,
        **settings.parameters(),
    }


class Trainer(base_component.BaseComponent):
    """TFX's Trainer with its main settings as parameters, so that a run can change them.

    Component `outputs` contains:
     - `model`: Channel of `standard_artifacts.Model`.
     - `model_run`: Channel of `standard_artifacts.ModelRun`, for TensorBoard.
    """

    SPEC_CLASS = TrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        run_fn: str,
        examples: types.BaseChannel,
        transform_graph: types.BaseChannel,
        schema: types.BaseChannel,
        custom_config: CustomConfig,
    ) -> None:
        """Constructs the component.

        Args:
            run_fn: Import path of the function that trains.
            examples: Examples with splits `train` and `eval`.
            transform_graph: Preprocessing.
            schema: Schema of the raw columns.
            custom_config: Argument of `run_fn`; the settings are in its groups `train` and `model`.
        """
        super().__init__(
            spec=TrainerSpec(
                run_fn=run_fn,
                examples=examples,
                transform_graph=transform_graph,
                schema=schema,
                train_args=trainer_pb2.TrainArgs(splits=["train"]),
                eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
                custom_config=json_utils.dumps(custom_config),
                model=types.Channel(type=standard_artifacts.Model),
                model_run=types.Channel(type=standard_artifacts.ModelRun),
                **settings.settings_of(custom_config),
            )
        )
