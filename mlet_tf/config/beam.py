"""How Apache Beam runs."""

from typing import Annotated

from pydantic import Field, StringConstraints, WithJsonSchema

from mlet_tf.config.base import Group
from mlet_tf.config.types import Items, Word

_Option = Annotated[
    str,
    StringConstraints(pattern=r"^--[^\x00-\x1f\x7f]+$"),
    WithJsonSchema({"type": "string", "allowed": "a text like --key=value"}),
]


class BeamConfig(Group):
    """Apache Beam; see `docs/beam.md`."""

    runner: Word = Field(
        "direct",
        description="`direct` runs in this process, or with `workers` in several; anything else is the name or the "
        "import path of a Beam runner.",
    )
    workers: int = Field(1, ge=1, le=10_000, description="Processes of the direct runner.")
    options: Items[_Option] = Field(
        (), description="Further Beam options, such as `--temp_location=gs://bucket/tmp`."
    )

    def args(self) -> list[str]:
        """Beam's command-line options."""
        if self.runner != "direct":
            return [f"--runner={self.runner}", *self.options]
        mode = "in_memory" if self.workers == 1 else "multi_processing"
        # By its full name: Beam's DirectRunner first tries to download another runner. An image name, which
        # this runner does not use, keeps TFX from packing itself up for every component.
        return [
            "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",
            f"--direct_running_mode={mode}",
            f"--direct_num_workers={self.workers}",
            "--sdk_container_image=unused",
            *self.options,
        ]
