"""`mlet-tf compile` and `mlet-tf submit`: the pipeline on Kubeflow Pipelines."""

import contextlib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import click
import yaml
from mlet_tf.pipeline.cli._logging import quiet

from mlet_tf.errors import InputError, nearest
from mlet_tf.network import is_loopback
from mlet_tf.outputs import output_file
from mlet_tf.storage import read_text
from mlet_tf.types import JsonObject

TOKEN = "KFP_TOKEN"

_NUMBERS = {"NUMBER_INTEGER": (int, "an integer"), "NUMBER_DOUBLE": (float, "a number")}


@click.command("compile")
@click.option("--config", "config_path", required=True, type=click.Path(), help="YAML, see configs/.")
@click.option(
    "--runner",
    default="kubeflow",
    show_default=True,
    type=click.Choice(["kubeflow"]),
    expose_value=False,  # The only choice so far; the option makes scripts explicit.
    help="What runs the pipeline.",
)
@click.option("--image", help="Image of the containers; default: `kubeflow.image` of the configuration.")
@click.option("--output", "-o", default="pipeline.yaml", show_default=True, help="File to write.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in `run`.")
def compile_command(config_path: str, image: str | None, output: str, overrides: tuple[str, ...]) -> None:
    """Compile the pipeline to a file that Kubeflow Pipelines v2 runs.

    Data location, steps, hidden dim, learning rates and image become parameters of the pipeline; the configuration
    gives their defaults.
    """
    from mlet_tf.pipeline.checks import check_kubeflow

    from mlet_tf.config import load_config

    if image is not None:
        overrides = (*overrides, f"kubeflow.image={image}")
    config = load_config(config_path, overrides)
    output_file(output, ".yaml", ".yml", make_folder=True)
    check_kubeflow(config)
    with quiet():
        from mlet_tf.pipeline import kubeflow_runner

        spec = kubeflow_runner.compile_pipeline(config)
    kubeflow_runner.write_pipeline(spec, output)
    click.echo(f"{output}: {len(spec['root']['dag']['tasks'])} tasks; parameters and their defaults:")
    for name, parameter in _parameters(spec).items():
        click.echo(f"  {name}={parameter['defaultValue']}")


@click.command()
@click.option("--endpoint", required=True, metavar="URL", help="Address of Kubeflow Pipelines.")
@click.option("--package", required=True, type=click.Path(), help="The file that `compile` wrote.")
@click.option("--parameter", "values", multiple=True, metavar="NAME=VALUE", help="Parameter of the pipeline.")
@click.option("--experiment", help="Experiment to run in; default: Kubeflow's.")
@click.option("--namespace", help="Namespace of the run, where Kubeflow serves several users.")
@click.option("--service-account", help="Kubernetes service account of the run's containers.")
def submit(
    endpoint: str,
    package: str,
    values: tuple[str, ...],
    experiment: str | None,
    namespace: str | None,
    service_account: str | None,
) -> None:
    """Start a run of a compiled pipeline and print its address.

    The token is that of the environment variable KFP_TOKEN, or of Google's application default credentials where the
    endpoint is Google's.
    """
    spec = _read_package(package)
    parameters = parse_parameters(values, _parameters(spec))
    with contextlib.redirect_stdout(sys.stderr):  # The client prints links.
        run = _start(endpoint, package, spec, parameters, experiment, namespace, service_account)
    click.echo(f"{endpoint.rstrip('/')}/#/runs/details/{run}")


def parse_parameters(
    values: Sequence[str], known: Mapping[str, Mapping[str, str]]
) -> dict[str, int | float | str]:
    """Reads `name=value` items.

    Args:
        values: The items.
        known: Parameters of the pipeline by name, with their `parameterType`.

    Returns:
        Values by name, of the parameter's type.

    Raises:
        InputError: If a name is unknown or a value does not fit its type.
    """
    parsed: dict[str, int | float | str] = {}
    for item in values:
        name, separator, text = item.partition("=")
        if not separator:
            raise InputError(f"--parameter {item!r}: expected NAME=VALUE")
        if name not in known:
            raise InputError(
                f"the pipeline has no parameter {name!r}.{nearest(name, known)} Parameters: {', '.join(known)}"
            )
        kind, expected = _NUMBERS.get(known[name]["parameterType"], (str, "a text"))
        try:
            parsed[name] = kind(text)
        except ValueError:
            raise InputError(f"parameter {name!r} should be {expected}. Received: {text!r}") from None
    return parsed


def _parameters(spec: JsonObject) -> JsonObject:
    return spec["root"]["inputDefinitions"]["parameters"]


def _read_package(path: str) -> JsonObject:
    try:
        spec = yaml.safe_load(read_text(path))
        _parameters(spec)
    except (yaml.YAMLError, TypeError, KeyError):
        raise InputError(f"{path} is no compiled pipeline; `mlet-tf compile` writes one") from None
    return spec


def _keeps_a_token(endpoint: str) -> bool:
    """Whether nobody on the way can read what is sent: over TLS, or on this machine."""
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        return parts.scheme == "https" or is_loopback(parts.hostname or "")
    except ValueError:
        return False


def _start(
    endpoint: str,
    package: str,
    spec: JsonObject,
    parameters: Mapping[str, int | float | str],
    experiment: str | None,
    namespace: str | None,
    service_account: str | None,
) -> str:
    """Starts the run; returns its id."""
    token = os.environ.get(TOKEN)
    if token and not _keeps_a_token(endpoint):
        raise InputError(f"{TOKEN}: expected https:// with it, as {endpoint} is another machine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import kfp
        import kfp_server_api
        import urllib3

        try:
            client = kfp.Client(endpoint, namespace=namespace or "kubeflow", existing_token=token)
            run = client.create_run_from_pipeline_package(
                package,
                arguments=dict(parameters),
                run_name=spec["pipelineInfo"]["name"],
                experiment_name=experiment,
                namespace=namespace,
                pipeline_root=spec.get("defaultPipelineRoot"),
                service_account=service_account,
            )
        except kfp_server_api.ApiException as error:
            raise InputError(f"{endpoint} answered {error.status} {error.reason}: {error.body}") from None
        except urllib3.exceptions.HTTPError as error:
            raise InputError(f"{endpoint} cannot be reached: {error}") from None
    return run.run_id
