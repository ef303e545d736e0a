"""Specification of the schema generator."""

from mlet_tf.components.schema_gen import executor
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts


class ClickLogSchemaGenSpec(component_spec.ComponentSpec):
    """Outputs and parameters of `ClickLogSchemaGen`."""

    INPUTS = {}
    OUTPUTS = {"schema": component_spec.ChannelParameter(type=standard_artifacts.Schema)}
    PARAMETERS = {"schema_text": component_spec.ExecutionParameter(type=str)}


class ClickLogSchemaGen(base_component.BaseComponent):
    """Writes the schema that follows from the configuration.

    TFX's ImportSchemaGen needs a file that every container can read; here the text itself is a parameter, so the
    cache sees its content.
    """

    SPEC_CLASS = ClickLogSchemaGenSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, schema_text: str) -> None:
        """Constructs the component.

        Args:
            schema_text: A tensorflow-metadata schema as a text protobuf.
        """
        super().__init__(
            spec=ClickLogSchemaGenSpec(
                schema_text=schema_text, schema=types.Channel(type=standard_artifacts.Schema)
            )
        )
