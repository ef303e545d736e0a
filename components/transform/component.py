"""Specification of Transform."""

from mlet_tf.components.transform import executor
from mlet_tf.components.types import CustomConfig
from tfx import types
from tfx.components.transform import component
from tfx.dsl.components.base import executor_spec


class Transform(component.Transform):
    """TFX's Transform with vocabularies from counts; it never reads the examples.

    Component `outputs` contains:
     - `transform_graph`: Channel of `standard_artifacts.TransformGraph`.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        schema: types.BaseChannel,
        preprocessing_fn: str,
        custom_config: CustomConfig,
    ) -> None:
        """Constructs the component.

        Args:
            examples: Examples of ClickLogExampleGen, with the counts of their values.
            schema: Schema of the raw columns.
            preprocessing_fn: Import path of a function without tensorflow-transform's analyzers.
            custom_config: Argument of the function, with the keys that the executor names.
        """
        super().__init__(
            examples=examples,
            schema=schema,
            preprocessing_fn=preprocessing_fn,
            materialize=False,
            disable_statistics=True,
            custom_config=custom_config,
        )
