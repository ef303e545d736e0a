"""Configuration: typed groups of keys, each key with its range and a description.

`load_config` reads a run's YAML file and applies `--set key=value` overrides; every mistake is one line with the key,
the value and what is allowed. The resolved configuration is stored beside every run and every model. `mlet-tf config`
prints all keys, `docs/configuration.md` has them too.
"""

from mlet_tf.config.base import Group, GroupError, from_mapping, load
from mlet_tf.config.beam import BeamConfig
from mlet_tf.config.compress import BudgetConfig, CompressConfig
from mlet_tf.config.data import DataConfig, SplitConfig, ValidationConfig, VocabularyConfig
from mlet_tf.config.gate import BoundConfig, GateConfig
from mlet_tf.config.kubeflow import KubeflowConfig, NodeConfig
from mlet_tf.config.model import ModelConfig
from mlet_tf.config.pipeline import PipelineConfig, dump_config, load_config
from mlet_tf.config.serving import ServingConfig
from mlet_tf.config.training import OptimizerConfig, ScheduleConfig, TablesConfig, TrainConfig

__all__ = [
    "BeamConfig",
    "BoundConfig",
    "BudgetConfig",
    "CompressConfig",
    "DataConfig",
    "GateConfig",
    "Group",
    "GroupError",
    "KubeflowConfig",
    "ModelConfig",
    "NodeConfig",
    "OptimizerConfig",
    "PipelineConfig",
    "ScheduleConfig",
    "ServingConfig",
    "SplitConfig",
    "TablesConfig",
    "TrainConfig",
    "ValidationConfig",
    "VocabularyConfig",
    "dump_config",
    "from_mapping",
    "load",
    "load_config",
]
