"""Specification of the gated evaluator."""

from mlet_tf.components.evaluator import executor
from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import component_spec, standard_artifacts


class GatedEvaluatorSpec(component_spec.ComponentSpec):
    """Inputs, outputs and parameters of `GatedEvaluator`."""

    INPUTS = {
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "transform_graph": component_spec.ChannelParameter(type=standard_artifacts.TransformGraph),
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "uncollapsed_model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "baseline_model": component_spec.ChannelParameter(type=standard_artifacts.Model, optional=True),
        "direct_baseline_model": component_spec.ChannelParameter(
            type=standard_artifacts.Model, optional=True
        ),
    }
    OUTPUTS = {
        "evaluation": component_spec.ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "blessing": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }
    PARAMETERS = {
        "schema": component_spec.ExecutionParameter(type=str),
        "gate": component_spec.ExecutionParameter(type=str),
        "compress": component_spec.ExecutionParameter(type=str),
        "table_dtype": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }


class GatedEvaluator(base_beam_component.BaseBeamComponent):
    """Evaluates the model that is to be pushed and blesses it if it passes the gate.

    It does the work of TFX's `Evaluator` for CTR models with three models side by side (the candidate, collapsed and
    perhaps compressed; the uncollapsed one; the last blessed one) and exact metrics over columns instead of one Python
    call a row, slice and model. Results are files that `tfma.load_eval_result` reads.
    """

    SPEC_CLASS = GatedEvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        transform_graph: types.BaseChannel,
        model: types.BaseChannel,
        uncollapsed_model: types.BaseChannel,
        schema: str,
        gate: str,
        compress: str,
        table_dtype: str,
        code_version: str,
        baseline_model: types.BaseChannel | None = None,
        direct_baseline_model: types.BaseChannel | None = None,
    ) -> None:
        """Constructs the component.

        Args:
            examples: Examples with an `eval` split of raw columns.
            transform_graph: Names the frequency buckets of ids.
            model: The candidate: the collapsed model, or what was made of it by compression.
            uncollapsed_model: The trained model.
            schema: JSON of `ClickLogSchema.to_dict()`.
            gate: JSON of the configuration's `gate`.
            compress: JSON of the configuration's `compress`, `null` where the candidate is not compressed.
            table_dtype: Dtype of the candidate's tables; the gate allows more where it is not `float32`.
            code_version: Changes when the code of this component does, so that TFX's cache notices.
            baseline_model: The last blessed model, if there is one.
            direct_baseline_model: The direct table of the compressed model's bytes, if there is one; it is evaluated
                and checked against nothing.
        """
        super().__init__(
            spec=GatedEvaluatorSpec(
                examples=examples,
                transform_graph=transform_graph,
                model=model,
                uncollapsed_model=uncollapsed_model,
                baseline_model=baseline_model,
                direct_baseline_model=direct_baseline_model,
                schema=schema,
                gate=gate,
                compress=compress,
                table_dtype=table_dtype,
                code_version=code_version,
                evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
            )
        )
