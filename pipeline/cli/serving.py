"""`mlet-tf serve`, `predict`, `push` and `rollback`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mlet_tf.pipeline.cli._types import FiniteRange

from mlet_tf.errors import InputError
from mlet_tf.storage import is_remote

if TYPE_CHECKING:
    from mlet_tf.datasets import ClickLogSchema
    from mlet_tf.serving.log_rows import LogRows


@click.command()
@click.option("--port", default=8500, show_default=True, type=click.IntRange(0, 65_535), help="gRPC port.")
@click.option(
    "--rest_api_port", default=8501, show_default=True, type=click.IntRange(0, 65_535), help="REST port."
)
@click.option("--model_name", default="ctr", show_default=True, help="Name of the model.")
@click.option("--model_base_path", type=click.Path(), help="Folder of the versions, where a run pushed them.")
@click.option(
    "--model_config_file",
    type=click.Path(),
    help="Several models: a ModelServerConfig in protobuf's text format.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the stand-in server.")
@click.option("--tensorflow_model_server", help="The real server's program; found by itself if left out.")
@click.option("--stand_in", is_flag=True, help="Use the stand-in even where a real server is found.")
@click.option(
    "--max_request_bytes",
    default=256 * 2**20,
    show_default=True,
    type=click.IntRange(1),
    help="Largest request that the stand-in takes.",
)
@click.option(
    "--max_batch_size",
    type=click.IntRange(1),
    help="Most rows in a request to the stand-in; no limit if left out.",
)
@click.option(
    "--timeout_seconds",
    default=30.0,
    show_default=True,
    type=FiniteRange(0, min_open=True),
    help="How long the stand-in may compute a request.",
)
def serve(**options: Any) -> None:
    """Serve pushed models over gRPC and REST until stopped.

    Starts a real tensorflow_model_server where one is found (--tensorflow_model_server, the variable
    TENSORFLOW_MODEL_SERVER, the PATH, docker), otherwise a small stand-in for development.
    """
    from mlet_tf.serving import ServeOptions, find_model_server, run_server

    stand_in, explicit = options.pop("stand_in"), options.pop("tensorflow_model_server")
    base, config_file = options["model_base_path"], options["model_config_file"]
    if not base and not config_file:
        raise InputError("give --model_base_path or --model_config_file")
    if base and not config_file and not is_remote(base) and not Path(base).is_dir():
        raise InputError(f"--model_base_path: expected the folder with the versions, found no folder {base}")
    serve_options = ServeOptions(**options)
    server = None if stand_in else find_model_server(explicit)
    if server is not None:
        command = server.command(serve_options)
        click.echo(f"Starting {' '.join(command)}", err=True)
        os.execvp(command[0], command)
    run_server(serve_options)


@click.command()
@click.argument("source")
@click.option("--schema", default="criteo", show_default=True, help="criteo, avazu or a YAML schema.")
@click.option(
    "--rows", default=10, show_default=True, type=click.IntRange(1), help="How many rows of the file to send."
)
@click.option("--server", default=None, help="HOST:PORT; default 127.0.0.1:8501, with grpc 127.0.0.1:8500.")
@click.option("--protocol", default="rest", show_default=True, type=click.Choice(["rest", "grpc"]))
@click.option("--model_name", default="ctr", show_default=True, help="Name of the model.")
@click.option("--wait", default=0.0, show_default=True, help="Seconds to wait until the server is ready.")
def predict(
    source: str, schema: str, rows: int, server: str | None, protocol: str, model_name: str, wait: float
) -> None:
    """Send rows to a server and print a CTR for each.

    SOURCE is a raw log file, with or without the label, or one row as JSON such as '{"I1": 3, "C1": "68fd1e64"}'.
    A malformed row prints "nan" in its place; stderr says why, and the exit code is 1.
    """
    from mlet_tf.datasets import load_schema
    from mlet_tf.serving import CTRClient

    log_schema = load_schema(schema)
    records = _rows(source, log_schema, rows)
    target = server or ("127.0.0.1:8501" if protocol == "rest" else "127.0.0.1:8500")
    with CTRClient(target, model_name=model_name, protocol=protocol, schema=log_schema) as client:
        if wait:
            client.wait_until_ready(timeout=wait)
        for ctr in records.align(client.predict(records.good)):
            click.echo(f"{ctr:.6f}")
    if records.rejects:
        sys.exit(1)


@click.command()
@click.argument("saved_model", type=click.Path())
@click.argument("base_path", type=click.Path())
@click.option("--keep", default=3, show_default=True, type=click.IntRange(1), help="Versions to keep.")
@click.option("--version", type=int, help="Number of the version, above all earlier ones; default: the next.")
@click.option("--warmup", metavar="LOG", help="Raw log; servers answer its rows before they use the version.")
@click.option(
    "--schema", default="criteo", show_default=True, help="Schema of LOG: criteo, avazu or a YAML schema."
)
@click.option(
    "--rows", default=32, show_default=True, type=click.IntRange(1, 1000), help="Rows of LOG to warm up with."
)
def push(
    saved_model: str,
    base_path: str,
    keep: int,
    version: int | None,
    warmup: str | None,
    schema: str,
    rows: int,
) -> None:
    """Push the SavedModel in folder SAVED_MODEL as a new version below BASE_PATH.

    SAVED_MODEL stays as it is: warm-up requests go into the new version only.
    """
    from mlet_tf.datasets import load_schema
    from mlet_tf.serving import push as push_model

    examples: list[bytes] = []
    log_schema = load_schema(schema)
    if warmup:
        from mlet_tf.serving.rows import Rows

        records = _rows(warmup, log_schema, rows)
        if records.rejects:
            raise click.ClickException(f"{warmup} has malformed rows: nothing was pushed")
        examples = Rows(records.good, log_schema).examples
    click.echo(push_model(saved_model, base_path, keep=keep, version=version, warmup=examples))


@click.command()
@click.argument("base_path", type=click.Path())
def rollback(base_path: str) -> None:
    """Withdraw the newest version below BASE_PATH, so that servers go back to the one before."""
    from mlet_tf.serving import rollback as roll_back

    click.echo(roll_back(base_path))


def _rows(source: str, schema: ClickLogSchema, limit: int) -> LogRows:
    """Rows of a file, or one row given as JSON; stderr gets a line for each malformed one."""
    from mlet_tf.serving.log_rows import LogRows, read_rows

    if not source.lstrip().startswith("{"):
        rows = read_rows(source, schema, limit)
        for reject in rows.rejects:
            click.echo(f"{reject.file}: line {reject.line}: {reject.reason}", err=True)
        return rows
    try:
        return LogRows.of([json.loads(source, object_pairs_hook=_each_key_once)])
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"the row is not JSON: {error}") from None


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the row should have each column once. Received: {twice!r} twice")
    return values
