"""`mlet-tf config`: all keys of a configuration."""

import click

_PAGE = """# Configuration

<!-- Made by `mlet-tf config --markdown > docs/configuration.md`, from the models that check a configuration. -->

A configuration is a YAML file in UTF-8; `configs/` has one for each data set. A key that is left out has its default.
`--set key=value` overrides a key, its value in YAML: `--set train.epochs=2 --set 'model.top_units=[64, 32]'`.

Everything is checked before anything runs. Each mistake is a line with file, key, value and what is allowed:

    Error: configuration run.yaml: 'validation.sample_rate' should be a number above 0 and at most 1. Received: 7

`1e-3` is a number; `on`, `off`, `yes`, `no`, dates and numbers with a leading zero are text; a key may be given once.

`mlet-tf config train` prints a group of these keys, `mlet-tf config --sweep` those of a sweep.

## A run

`mlet-tf run`, `plan`, `compile` and `worker` read these.

{run}
## A sweep

`mlet-tf sweep` reads `name` and `output` (both required), `data`, `vocabulary`, `model` and `train` as a run does, and
the group `sweep`; `--set` overrides their keys too. These are for runs only, a sweep refuses them:

{run_only}

{sweep}"""


@click.command()
@click.argument("key", required=False)
@click.option("--sweep", is_flag=True, help="Keys of a sweep; default: of a run.")
@click.option("--markdown", is_flag=True, help="Print the page docs/configuration.md.")
def config(key: str | None, sweep: bool, markdown: bool) -> None:
    """Print the keys of a configuration with their defaults, ranges and descriptions.

    KEY is a key or a group, such as train.tables; by default all are printed.
    """
    click.echo(page() if markdown else _listing(key, sweep), nl=not markdown)


def page() -> str:
    """The reference page, keys of runs and of sweeps."""
    from mlet_tf.config import PipelineConfig
    from mlet_tf.config.reference import key_tables
    from mlet_tf.config.sweep import RUN_ONLY, SweepConfig

    run_only = "\n".join(f"* `{key}`: {reason}" for key, reason in RUN_ONLY.items())
    return _PAGE.format(
        run=key_tables(PipelineConfig), run_only=run_only, sweep=key_tables(SweepConfig, "sweep")
    )


def _listing(key: str | None, sweep: bool) -> str:
    from mlet_tf.config.reference import key_list

    if sweep:
        from mlet_tf.config.sweep import SweepConfig

        return key_list(SweepConfig, key)
    from mlet_tf.config import PipelineConfig

    return key_list(PipelineConfig, key)
