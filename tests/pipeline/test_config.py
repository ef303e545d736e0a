"""Configuration: round trips, shipped files, Beam options."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf._mapping import from_mapping, to_mapping
from mlet_tf.config import (
    BeamConfig,
    ModelConfig,
    PipelineConfig,
    TrainConfig,
    dump_config,
    load_config,
)
from mlet_tf.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("[!s]*.yaml"))  # Not the sweeps.


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_round_trip(path, tmp_path):
    config = load_config(path)
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config


@given(
    st.integers(1, 64), st.one_of(st.none(), st.integers(64, 128)), st.lists(st.integers(1, 512), max_size=3)
)
@settings(max_examples=30)
def test_dataclasses_round_trip_through_plain_values(output_dim, hidden_dim, units):
    config = PipelineConfig(model=ModelConfig(output_dim, hidden_dim, bottom_units=tuple(units)))
    assert from_mapping(PipelineConfig, to_mapping(config)) == config


def test_overrides_reach_into_groups(tmp_path):
    (tmp_path / "c.yaml").write_text("name: x\n")
    config = load_config(tmp_path / "c.yaml", ["train.tables.learning_rate=1e-3", "model.top_units=[8, 4]"])
    assert config.train.tables.learning_rate == 1e-3
    assert config.model.top_units == (8, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_sise": 1}, "Did you mean 'batch_size'"),
        ({"batch_size": True}, "'batch_size' should be an integer"),
        ({"tables": {"name": "adam"}}, "'tables.name' should be 'sgd' or"),
        ({"tables": 3}, "tables: expected a mapping"),
        (
            {"dense": {"name": "lazy_adam", "initial_accumulator": 0.1}},
            "'initial_accumulator' should be .* lazy_adam",
        ),
        ({"dense": {"initial_accumulator": -0.1}}, "'initial_accumulator' should be at least 0"),
        ({"epochs": "two"}, "'epochs' should be an integer"),
    ],
)
def test_messages_name_the_key(values, message):
    with pytest.raises(InputError, match=message):
        from_mapping(TrainConfig, values)


def test_beam_options():
    assert "--direct_running_mode=in_memory" in BeamConfig().args()
    assert "--direct_num_workers=2" in BeamConfig(workers=2).args()
    flink = BeamConfig(runner="FlinkRunner", options=("--flink_master=host:8081",))
    assert flink.args() == ["--runner=FlinkRunner", "--flink_master=host:8081"]
