"""Specification of the serving validator."""

from mlet_tf.components.serving_validator import executor
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts


class ServingValidatorSpec(component_spec.ComponentSpec):
    """Inputs, outputs and parameters of `ServingValidator`."""

    INPUTS = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {"blessing": component_spec.ChannelParameter(type=standard_artifacts.InfraBlessing)}
    PARAMETERS = {
        "schema": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }


class ServingValidator(base_component.BaseComponent):
    """Loads the SavedModel in a fresh process and answers real rows through all its signatures.

    It replaces TFX's InfraValidator where there is no docker or cluster to start a model server in: there
    InfraValidator succeeds but does not bless, so nothing is ever pushed.
    """

    SPEC_CLASS = ServingValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self, model: types.BaseChannel, examples: types.BaseChannel, schema: str, code_version: str
    ) -> None:
        """Constructs the component.

        Args:
            model: The model to push.
            examples: Examples; the rows are from their `eval` split.
            schema: JSON of `ClickLogSchema.to_dict()`.
            code_version: Changes with the code of this component, so that TFX's cache misses.
        """
        super().__init__(
            spec=ServingValidatorSpec(
                model=model,
                examples=examples,
                schema=schema,
                code_version=code_version,
                blessing=types.Channel(type=standard_artifacts.InfraBlessing),
            )
        )
