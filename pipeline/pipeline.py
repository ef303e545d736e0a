"""The TFX graph: raw click logs to a pushed model, collapsed and perhaps compressed."""

import json
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from mlet_tf.components.baseline_trainer.component import BaselineTrainer
from mlet_tf.components.click_log_example_gen.component import ClickLogExampleGen
from mlet_tf.components.evaluator.component import GatedEvaluator
from mlet_tf.components.example_validator.component import GatedExampleValidator
from mlet_tf.components.model_compressor.component import ModelCompressor
from mlet_tf.components.pusher.component import AtomicPusher
from mlet_tf.components.schema_gen.component import ClickLogSchemaGen
from mlet_tf.components.serving_validator.component import ServingValidator
from mlet_tf.components.statistics_gen.component import StatisticsGen
from mlet_tf.components.trainer.component import Trainer
from mlet_tf.components.transform.component import Transform
from mlet_tf.components.weight_collapser.component import WeightCollapser
from mlet_tf.pipeline.code_version import code_version
from tfx import v1 as tfx
from tfx.dsl.components.base import base_node

from mlet_tf.config import PipelineConfig
from mlet_tf.features.validation import schema_text
from mlet_tf.storage import absolute

LAST_BLESSED = "LastBlessedModel"


def create_pipeline(
    config: PipelineConfig,
    pipeline_root: str,
    work: str,
    metadata_connection_config: metadata_store_pb2.ConnectionConfig | None = None,
    use_model_server: bool = False,
    last_blessed: base_node.BaseNode | None = None,
) -> tfx.dsl.Pipeline:
    """Builds the pipeline; paths come from the runner.

    Args:
        config: The resolved configuration.
        pipeline_root: Where artifacts go.
        work: Where trainer and compressor keep packed rows and finished steps, from which an interrupted run resumes.
        metadata_connection_config: ML Metadata store; None if the orchestrator has its own.
        use_model_server: Whether TFX's InfraValidator can start a model server with docker.
        last_blessed: Node whose output `model` the gate compares with; None compares with none.

    Returns:
        The pipeline.
    """
    nodes = _data_nodes(config)
    nodes |= _model_nodes(config, nodes, work)
    if config.compress is not None and config.compress.baseline:
        nodes["baseline"] = _baseline(config, nodes, work)
    if last_blessed is not None:
        nodes["last_blessed"] = last_blessed
    nodes |= _push_nodes(config, nodes, use_model_server)
    return tfx.dsl.Pipeline(
        pipeline_name=config.name,
        pipeline_root=pipeline_root,
        components=list(nodes.values()),
        enable_cache=config.enable_cache,
        metadata_connection_config=metadata_connection_config,
        beam_pipeline_args=config.beam.args(),
    )


def last_blessed_model() -> base_node.BaseNode:
    """Finds the last blessed model in ML Metadata, if the orchestrator can."""
    return tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.Model),
        model_blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelBlessing),
    ).with_id(LAST_BLESSED)


def _data_nodes(config: PipelineConfig) -> dict[str, base_node.BaseNode]:
    """Ingestion, statistics and their validation."""
    data = config.data
    example_gen = ClickLogExampleGen(
        config.schema,
        data.train,
        data.eval,
        method=data.split.method,
        eval_share=data.split.eval_share,
        cut=data.split.cut,
        seed=data.split.seed,
        max_reject_share=data.max_reject_share,
        chunk_bytes=data.chunk_bytes,
        column=data.split.column,
        parts=data.split.parts,
        code_version=code_version("mlet_tf.components.click_log_example_gen"),
    )
    schema_gen = ClickLogSchemaGen(schema_text(config.schema, config.validation))
    statistics_gen = StatisticsGen(
        examples=example_gen.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        sample_rate=config.validation.sample_rate,
        code_version=code_version("mlet_tf.components.statistics_gen"),
    )
    validator = (
        GatedExampleValidator if config.validation.fail_on_anomalies else tfx.components.ExampleValidator
    )
    example_validator = validator(
        statistics=statistics_gen.outputs["statistics"], schema=schema_gen.outputs["schema"]
    )
    return {
        "example_gen": example_gen,
        "statistics_gen": statistics_gen,
        "schema_gen": schema_gen,
        "example_validator": example_validator,
    }


def _model_nodes(
    config: PipelineConfig, nodes: dict[str, base_node.BaseNode], work: str
) -> dict[str, base_node.BaseNode]:
    """Preprocessing, training, collapse and compression."""
    schema = config.schema
    examples = nodes["example_gen"].outputs["examples"]
    transform = Transform(
        examples=examples,
        schema=nodes["schema_gen"].outputs["schema"],
        preprocessing_fn="mlet_tf.features.preprocessing.preprocessing_fn",
        custom_config={
            "schema": schema.to_dict(),
            **config.vocabulary.to_plain(),
            "frequency_slices": list(config.gate.frequency_slices),
            "code_version": code_version("mlet_tf.components.transform", "mlet_tf.features.preprocessing"),
        },
    )
    # A failed validation stops the run before anything is trained on such data.
    transform.add_upstream_node(nodes["example_validator"])
    trainer = Trainer(
        run_fn="mlet_tf.training.trainer.run_fn",
        examples=examples,
        transform_graph=transform.outputs["transform_graph"],
        schema=nodes["schema_gen"].outputs["schema"],
        custom_config=_training(config, work, "mlet_tf.training.trainer", "mlet_tf.training.worker"),
    )
    collapser = WeightCollapser(
        model=trainer.outputs["model"],
        transform_graph=transform.outputs["transform_graph"],
        examples=examples,
        schema=json.dumps(schema.to_dict()),
        warmup_rows=config.serving.warmup_rows,
        table_dtype=config.serving.table_dtype,
        code_version=code_version("mlet_tf.components.weight_collapser"),
    )
    made = {"transform": transform, "trainer": trainer, "collapser": collapser}
    if config.compress is not None:
        made["compressor"] = ModelCompressor(
            model=collapser.outputs["collapsed_model"],
            transform_graph=transform.outputs["transform_graph"],
            examples=examples,
            schema=json.dumps(schema.to_dict()),
            compress=json.dumps(config.compress.to_plain()),
            train=config.train.to_plain(),
            num_oov_buckets=config.vocabulary.num_oov_buckets,
            warmup_rows=config.serving.warmup_rows,
            work=work,
            code_version=code_version("mlet_tf.components.model_compressor"),
        )
    return made


def _baseline(config: PipelineConfig, nodes: dict[str, base_node.BaseNode], work: str) -> BaselineTrainer:
    """The direct table of the compressed model's bytes."""
    return BaselineTrainer(
        examples=nodes["example_gen"].outputs["examples"],
        transform_graph=nodes["transform"].outputs["transform_graph"],
        compression=nodes["compressor"].outputs["report"],
        custom_config=_training(config, work, "mlet_tf.components.baseline_trainer"),
    )


def _training(config: PipelineConfig, work: str, *modules: str) -> dict[str, Any]:
    """What a training needs of the configuration; `modules` are those whose code it depends on."""
    return {
        "schema": config.schema.to_dict(),
        "model": config.model.to_plain(),
        "train": config.train.to_plain(),
        "vocabulary": config.vocabulary.to_plain(),
        "work": work,
        "code_version": code_version(*modules),
    }


def _push_nodes(
    config: PipelineConfig, nodes: dict[str, base_node.BaseNode], use_model_server: bool
) -> dict[str, base_node.BaseNode]:
    """The gate and what comes after it."""
    schema = json.dumps(config.schema.to_dict())
    examples = nodes["example_gen"].outputs["examples"]
    model = _candidate(nodes)
    evaluator = GatedEvaluator(
        examples=examples,
        transform_graph=nodes["transform"].outputs["transform_graph"],
        model=model,
        uncollapsed_model=nodes["trainer"].outputs["model"],
        baseline_model=nodes["last_blessed"].outputs["model"] if "last_blessed" in nodes else None,
        direct_baseline_model=nodes["baseline"].outputs["model"] if "baseline" in nodes else None,
        schema=schema,
        gate=json.dumps(config.gate.to_plain()),
        compress=json.dumps(config.compress and config.compress.to_plain()),
        table_dtype=config.serving.table_dtype,
        code_version=code_version("mlet_tf.components.evaluator"),
    )
    if use_model_server:
        validator = tfx.components.InfraValidator(
            model=model,
            examples=examples,
            serving_spec=tfx.proto.ServingSpec(
                tensorflow_serving=tfx.proto.TensorFlowServing(tags=["2.16.1"]),
                local_docker=tfx.proto.LocalDockerConfig(),
            ),
            request_spec=tfx.proto.RequestSpec(
                tensorflow_serving=tfx.proto.TensorFlowServingRequestSpec(
                    signature_names=["serving_default"]
                ),
                split_name="eval",
                num_examples=32,
            ),
        )
    else:
        validator = ServingValidator(
            model=model,
            examples=examples,
            schema=schema,
            code_version=code_version("mlet_tf.components.serving_validator"),
        )
    pusher = AtomicPusher(
        model=model,
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=validator.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=absolute(config.push_to))
        ),
        custom_config={"keep": config.serving.keep},
    )
    return {"evaluator": evaluator, "serving_validator": validator, "pusher": pusher}


def _candidate(nodes: dict[str, base_node.BaseNode]) -> tfx.types.BaseChannel:
    """The model that is judged and pushed."""
    if "compressor" in nodes:
        return nodes["compressor"].outputs["compressed_model"]
    return nodes["collapser"].outputs["collapsed_model"]
