"""`mlet-tf worker`: one more process of a training over several hosts."""

import os
import sys

import click
from mlet_tf.pipeline.cli._logging import quiet

from mlet_tf.errors import InputError


@click.command()
@click.option("--config", "config_path", required=True, type=click.Path(), help="The chief's configuration.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key, as the chief's `run` does.",
)
@click.option("--timeout", default=3600.0, show_default=True, help="Seconds to wait for the chief's Trainer.")
def worker(config_path: str, overrides: tuple[str, ...], timeout: float) -> None:
    """Take part in the training of a run on another host.

    TF_CONFIG names the processes. Waits until the chief, which is `mlet-tf run`, comes to its Trainer; ends with the
    training. All processes have to see the output folder: on a shared disk, gs:// or s3://.
    """
    from mlet_tf.config import load_config
    from mlet_tf.distributed.cluster import Cluster
    from mlet_tf.storage import absolute

    cluster = Cluster.from_environment()
    if cluster.is_chief:
        raise InputError(
            "TF_CONFIG should name this process as one of several workers that is not the chief, whose part is "
            f"`mlet-tf run`. Received: {os.environ.get('TF_CONFIG')!r}"
        )
    config = load_config(config_path, overrides)
    with quiet():
        from mlet_tf.training.processes import join_training

    sys.exit(join_training(f"{absolute(config.output)}/work", timeout))
