"""`mlet-tf worker`: one more process of a training over several hosts."""

import os
import sys

import click

from mlet_tf.errors import InputError


@click.command()
@click.option("--config", "config_path", required=True, type=click.Path(), help="The chief's configuration.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As the chief's `run` has it.")
@click.option("--timeout", default=3600.0, show_default=True, help="Seconds to wait for the chief's Trainer.")
def worker(config_path: str, overrides: tuple[str, ...], timeout: float) -> None:
    """Train together with the chief that runs the pipeline, as TF_CONFIG says.

    Waits until the chief's run comes to its Trainer, takes part in the training, and ends with it. The output folder
    has to be one that all processes see: a shared disk, gs:// or s3://.
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
    from mlet_tf.training.processes import join_training

    sys.exit(join_training(f"{absolute(config.output)}/work", timeout))
