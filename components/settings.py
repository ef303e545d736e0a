"""Settings of a training as execution properties, so that a run can change them.

On Kubeflow they are parameters of the pipeline.
"""

import functools
import operator

from mlet_tf.components.types import CustomConfig, Properties
from tfx.types import component_spec

from mlet_tf.errors import InputError

# Execution properties and the place of each in `custom_config`.
SETTINGS = {
    "max_steps": ("train", "max_steps"),
    "hidden_dim": ("model", "hidden_dim"),
    "tables_learning_rate": ("train", "tables", "learning_rate"),
    "projections_learning_rate": ("train", "projections", "learning_rate"),
    "dense_learning_rate": ("train", "dense", "learning_rate"),
}


def parameters() -> dict[str, component_spec.ExecutionParameter]:
    """The parameters of a component that takes settings."""
    return {
        name: component_spec.ExecutionParameter(type=float if name.endswith("rate") else int)
        for name in SETTINGS
    }


def settings_of(custom_config: CustomConfig) -> dict[str, int | float]:
    """The settings in a configuration; 0 stands for null, which a parameter of Kubeflow cannot be."""
    return {
        name: functools.reduce(operator.getitem, path, custom_config) or 0 for name, path in SETTINGS.items()
    }


def with_settings(custom_config: CustomConfig, settings: Properties) -> CustomConfig:
    """The inverse of `settings_of`: changes the configuration in place and returns it.

    Raises:
        InputError: If a setting does not fit.
    """
    for name, path in SETTINGS.items():
        value = settings[name]
        is_rate = name.endswith("learning_rate")
        if value < 0 or (is_rate and value == 0):
            raise InputError(
                f"'{name}' should be {'positive' if is_rate else '0 or more'}. Received: {value}"
            )
        *groups, last = path
        functools.reduce(operator.getitem, groups, custom_config)[last] = value or None
    hidden_dim, output_dim = settings["hidden_dim"], custom_config["model"]["output_dim"]
    if 0 < hidden_dim < output_dim:
        raise InputError(
            f"'hidden_dim' (k={hidden_dim}) should be at least the output dim (d={output_dim}), or 0 for "
            "direct embeddings"
        )
    return custom_config
