"""Writes the settings of a run into the training's configuration, then trains."""

from mlet_tf.components.settings import with_settings
from mlet_tf.components.types import Artifacts, Properties
from tfx.components.trainer import executor
from tfx.utils import json_utils


class Executor(executor.GenericExecutor):
    """Executor of `Trainer`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Trains; see TFX's own executor for the other keys.

        Args:
            input_dict: `examples`, `transform_graph` and `schema`.
            output_dict: `model` and `model_run`.
            exec_properties: The settings, which override `custom_config` (JSON).

        Raises:
            InputError: If a setting does not fit.
        """
        config = with_settings(json_utils.loads(exec_properties["custom_config"]), exec_properties)
        super().Do(input_dict, output_dict, {**exec_properties, "custom_config": json_utils.dumps(config)})
