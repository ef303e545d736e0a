"""Configuration: what is refused and how it is said, round trips, shipped and stored files, Beam options."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.config import (
    BeamConfig,
    ModelConfig,
    NodeConfig,
    OptimizerConfig,
    PipelineConfig,
    TrainConfig,
    dump_config,
    from_mapping,
    load_config,
)
from mlet_tf.errors import InputError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("[!s]*.yaml"))  # Not the sweeps.


def message_of(folder, text, overrides=()):
    """The lines with which a configuration is refused, without what stands before the key."""
    path = folder / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(path, overrides)
    return str(error.value).replace(f"configuration {path}: ", "")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_round_trip(path, tmp_path):
    config = load_config(path)
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config


@given(
    st.integers(1, 64), st.one_of(st.none(), st.integers(64, 128)), st.lists(st.integers(1, 512), max_size=3)
)
@settings(max_examples=30, deadline=None)
def test_groups_round_trip_through_plain_values_and_json(output_dim, hidden_dim, units):
    model = ModelConfig(output_dim=output_dim, hidden_dim=hidden_dim, bottom_units=tuple(units))
    config = PipelineConfig(model=model)
    assert from_mapping(PipelineConfig, config.to_plain()) == config
    assert from_mapping(PipelineConfig, json.loads(json.dumps(config.to_plain()))) == config


def leaves(values, path=()):
    """All keys of a nested document that have no keys below them, with their values."""
    if not isinstance(values, dict) or not values:
        return {path: values}
    return {key: value for name in values for key, value in leaves(values[name], (*path, name)).items()}


def test_a_configuration_stored_by_an_earlier_version_is_what_it_was(tmp_path):
    """`config.yaml` beside a run of 0.2.0, which had other classes: it loads, and its keys are written as they were."""
    stored = Path(__file__).parent / "stored_by_0_2_0.yaml"
    written = leaves(yaml.safe_load(dump_config(load_config(stored))))
    before = leaves(yaml.safe_load(stored.read_text().replace("authors", "fixed_variance")))
    assert {key: written.get(key) for key in before} == before


def test_overrides_reach_into_groups(tmp_path):
    (tmp_path / "c.yaml").write_text("name: x\ntrain:\n")
    overrides = [
        "train.tables.learning_rate=1e-3",
        "model.top_units=[8, 4]",
        "model.mixed_precision=on",
        "data.train=logs/day #1.tsv",
        "serving.push_to=null",
        "train.epochs=2",
        "train.epochs=3",
    ]
    config = load_config(tmp_path / "c.yaml", overrides)
    assert config.train.tables.learning_rate == 1e-3
    assert config.model.top_units == (8, 4)
    assert config.model.mixed_precision == "on"
    assert config.data.train == "logs/day #1.tsv"
    assert config.serving.push_to is None
    assert config.train.epochs == 3


def test_all_mistakes_of_a_file_come_at_once_a_line_each(tmp_path):
    text = "model: {initialization: fixed_varianc, bottom_units: [0, -3]}\ntrain: {batch_sise: 1}\n"
    lines = message_of(tmp_path, text, ["validation.sample_rate=7", "train.tables.learning_rate=.nan"])
    assert lines.splitlines() == [
        "--set validation.sample_rate=7: 'validation.sample_rate' should be a number above 0 and at most 1. "
        "Received: 7",
        "'model.bottom_units[0]' should be an integer from 1 to 65,536. Received: 0",
        "'model.bottom_units[1]' should be an integer from 1 to 65,536. Received: -3",
        "'model.initialization' should be 'fixed_variance', 'variance_preserving' or 'orthogonal'. "
        "Received: 'fixed_varianc'. Did you mean 'fixed_variance'?",
        "--set train.tables.learning_rate=.nan: 'train.tables.learning_rate' should be a number above 0 and at most "
        "10,000. Received: nan",
        f"unknown key 'train.batch_sise'. Did you mean 'batch_size'? Known keys: {', '.join(TrainConfig.model_fields)}",
    ]


@pytest.mark.parametrize(
    "override",
    [
        "model.initialization=athors",
        "model.initialization=author",
        "model.bottom_units=[0]",
        "model.bottom_units=[0,-3]",
        "model.output_dim=0",
        "model.hidden_dim=0",
        "train.tables.learning_rate=-1",
        "train.dense.learning_rate=0",
        "train.projections.learning_rate=.nan",
        "train.tables.learning_rate=.inf",
        "train.max_steps=0",
        "train.shuffle_rows=0",
        "train.shuffle_rows=-5",
        "train.batch_size=0",
        "train.epochs=0",
        "train.seed=-1",
        "train.seed=4294967296",
        "validation.sample_rate=0",
        "validation.sample_rate=7",
        "validation.max_drift={C1: .nan}",
        "vocabulary.max_size=0",
        "data.chunk_bytes=0",
        "data.max_reject_share=2",
        "data.split.seed=-1",
        "data.split.eval_share=1",
        "gate.max_auc_drop=-1",
        "gate.max_auc_drop=.nan",
        "gate.bounds={auc: {min: .nan}}",
        "gate.bounds={auc: {min: 1.5}}",
        "gate.bounds={logloss: {min: 2, max: 1}}",
        "gate.slices=[C1, C1]",
        "serving.model_name=a/b",
        "serving.model_name=..",
        "serving.push_to=gs://bucket/*",
        "serving.warmup_rows=1001",
        "serving.keep=0",
        "beam.workers=0",
        "beam.options=[temp_location=gs://bucket]",
        "kubeflow.defaults={cpu: 0}",
        "kubeflow.defaults={memory_gb: -1}",
        "kubeflow.nodes={Trainer: {retries: -1}}",
        "kubeflow.nodes={Trainer: {accelerator: nvidia.com/gpu, accelerator_count: 0}}",
        "kubeflow.work=gs://bucket/[a]",
        "name=a/b",
        "output=runs/[x]",
        "output=runs/a*",
        "output=runs/what?",
        "output=~/runs",
        'output="runs/a\\0b"',
        "output=",
    ],
)
def test_absurd_values_end_with_a_line_that_names_the_override(tmp_path, override):
    message = message_of(tmp_path, "name: x\n", [override])
    key = override.partition("=")[0]
    assert message.startswith(f"--set {override}: '{key}")
    assert "should be" in message and "Received: " in message
    assert message.count("\n") == (1 if override == "model.bottom_units=[0,-3]" else 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_dim=4", "'model.hidden_dim' (k=4) should be at least `output_dim` (d=8)"),
        ("data.split.cut=14102100", "'data.split.cut' should be given for method 'time' only"),
        ("data.split.method=files", "'data.eval' and 'split.method: files' go together"),
        ("data.eval=x.tsv", "'data.eval' and 'split.method: files' go together"),
        (
            "data.split={method: column, column: C99, parts: {train: [a], eval: [b]}}",
            "'data.split.column' should be a column of schema 'criteo' other than its label. Received: 'C99'. Did you",
        ),
        (
            "data.split={method: column, column: C1}",
            "'data.split.parts' should have lists for train and eval",
        ),
        ("data.split.column=C1", "'data.split.column' and method 'column' go together; give both or neither"),
        ("data.schema=crite", "'data.schema': A schema should be 'criteo' or 'avazu' or the path"),
        ("data.schema=absent.yaml", "'data.schema': The schema file absent.yaml"),
        ("data.split.method=time", "'data.split.method' is 'time', but schema 'criteo' has no time column"),
        (
            "gate.slices=[C99]",
            "'gate.slices' names 'C99', which the schema does not have. Did you mean 'C9'?",
        ),
        ("gate.frequency_slices=[I1]", "'gate.frequency_slices' names 'I1'"),
        ("validation.max_drift={I1: 0.1}", "'validation.max_drift' names 'I1'"),
        ("validation.max_missing_share={label: 0.1}", "'validation.max_missing_share' names 'label'"),
        (
            "train.dense={name: lazy_adam, initial_accumulator: 0.1}",
            "'train.dense.initial_accumulator' should be given for adagrad and row_wise_adagrad only",
        ),
        ("kubeflow.defaults={accelerator: x}", "'kubeflow.defaults.accelerator' and 'accelerator_count' go"),
        ("gate.bounds={acu: {min: 1}}", "unknown key 'gate.bounds.acu'. Did you mean 'auc'?"),
        ("gate.bounds={auc: {mni: 1}}", "unknown key 'gate.bounds.auc.mni'. Did you mean 'min'?"),
        ("model.hiden_dim=4", "unknown key 'model.hiden_dim'. Did you mean 'hidden_dim'?"),
        ("train.dense=3", "'train.dense' should be a group of keys. Received: 3"),
        ("train.batch_size=true", "'train.batch_size' should be an integer"),
        ("train.epochs=two", "'train.epochs' should be an integer from 1 to 100,000. Received: 'two'"),
        ("train.epochs=1.5", "'train.epochs' should be an integer"),
        ("train.epochs=010", "'train.epochs' should be an integer from 1 to 100,000. Received: '010'"),
        ("enable_cache=yes", "'enable_cache' should be true or false. Received: 'yes'"),
        ("name=5", "'name' should be a name of letters, digits"),
        ("validation.max_drift={C1: 0, C1: 1}", "the key 'C1' is given twice"),
        ("train.epochs.x=1", "--set train.epochs.x=1: 'train.epochs' should be an integer"),
        ("name.x=1", "--set 'name.x=1': 'name' is not a group of keys"),
        ("train.epochs", "expected key=value"),
        ("=1", "expected key=value"),
        ("train..epochs=1", "expected key=value"),
    ],
)
def test_mistakes_name_the_key(tmp_path, override, message):
    text = message_of(tmp_path, "name: x\n", [override])
    assert "\n" not in text
    assert message in text


@pytest.mark.parametrize("cut", [14103000, 14102123])
def test_a_cut_is_a_value_of_the_time_column(tmp_path, cut):
    overrides = ["data.schema=avazu", "data.split.method=time"]
    (tmp_path / "c.yaml").write_text("")
    with pytest.raises(InputError, match="expected a mapping"):
        load_config(tmp_path / "c.yaml")
    text = message_of(tmp_path, "name: x\n", [*overrides, "data.split.cut=20141030"])
    assert "'data.split.cut' should be an hour as YYMMDDHH, such as 14103000. Received: 20141030" in text
    assert load_config(tmp_path / "c.yaml", [*overrides, f"data.split.cut={cut}"]).data.split.cut == cut


def test_large_values_do_not_make_large_messages(tmp_path):
    overrides = [f"data.max_reject_share={'x' * 10_000}", f"train.epochs=[{'1, ' * 10_000}]"]
    message = message_of(tmp_path, "name: x\n", ["train.seed=" + "9" * 300])
    assert "'train.seed' should be an integer" in message
    message = message_of(tmp_path, f"data: {{max_reject_share: {'x' * 10_000}}}\n")
    assert len(message) < 500
    with pytest.raises(InputError):
        load_config(tmp_path / "c.yaml", overrides)


def test_groups_cannot_be_changed_and_changed_copies_are_checked():
    config = OptimizerConfig(name="adagrad", initial_accumulator=0.1)
    with pytest.raises(ValueError, match="frozen"):
        config.learning_rate = 1.0
    assert config.replace(learning_rate=1.0) == OptimizerConfig(learning_rate=1.0, initial_accumulator=0.1)
    with pytest.raises(ValueError, match="initial_accumulator"):
        config.replace(name="sgd")
    assert NodeConfig(cpu=2).cpu == 2.0


def test_from_mapping_says_where_the_group_belongs():
    with pytest.raises(InputError) as error:
        from_mapping(TrainConfig, {"epochs": 0, "tables": {"name": "adam"}}, "train")
    assert str(error.value).splitlines() == [
        "'train.epochs' should be an integer from 1 to 100,000. Received: 0",
        "'train.tables.name' should be 'sgd', 'adagrad', 'row_wise_adagrad' or 'lazy_adam'. Received: 'adam'. "
        "Did you mean 'lazy_adam'?",
    ]
    with pytest.raises(InputError, match=r"train: expected a mapping of keys\. Received: 3"):
        from_mapping(TrainConfig, 3, "train")


def test_beam_options():
    assert "--direct_running_mode=in_memory" in BeamConfig().args()
    assert "--direct_num_workers=2" in BeamConfig(workers=2).args()
    flink = BeamConfig(runner="FlinkRunner", options=("--flink_master=host:8081",))
    assert flink.args() == ["--runner=FlinkRunner", "--flink_master=host:8081"]
