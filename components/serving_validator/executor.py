"""Starts the check in a fresh process and records its verdict."""

import json
import subprocess

from absl import logging
from mlet_tf.components.common import split_files
from mlet_tf.components.types import Artifacts, Properties
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils

from mlet_tf.child_processes import module_command
from mlet_tf.export import SERVING_MODEL
from mlet_tf.serving import check
from mlet_tf.storage import join

_TIMEOUT_SECONDS = 600


class Executor(base_executor.BaseExecutor):
    """Executor of `ServingValidator`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Runs the check and writes the blessing.

        Args:
            input_dict: `model` and `examples`, one artifact each.
            output_dict: `blessing`, an InfraBlessing whose `blessed` property TFX's Pusher reads.
            exec_properties: `schema` (JSON).
        """
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        task = {
            "model": join(artifact_utils.get_single_uri(input_dict["model"]), SERVING_MODEL),
            "files": split_files(input_dict["examples"], "eval"),
            "schema": json.loads(exec_properties["schema"]),
        }
        process = subprocess.run(
            module_command(check.__name__),
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        passed = process.returncode == 0
        if passed:
            logging.info("Serving check: %s", process.stdout.strip())
        else:
            logging.error("Serving check failed: %s", process.stderr.strip()[-2000:])
        blessing.set_int_custom_property("blessed", int(passed))
        io_utils.write_string_file(join(blessing.uri, "INFRA_BLESSED" if passed else "INFRA_NOT_BLESSED"), "")
