"""The `mlet-tf` command."""

import contextlib
import errno
import importlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

# TensorFlow's C++ lines tell a user of the command nothing, and its errors come as exceptions too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

warnings.filterwarnings("ignore", category=FutureWarning, module="google")  # About Python's end of life.

import click
from mlet_tf.pipeline.cli import config, kubeflow, plan, sweep, worker

from mlet_tf._version import __version__
from mlet_tf.errors import GateError, InputError, WorkerLostError
from mlet_tf.network import bypass_proxy_for_loopback

_NOT_PUSHED = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """From raw click logs to a served CTR model with small embedding tables.

    \b
    A first round, about five minutes on two cores:
      mlet-tf synth runs/demo/data/train.tsv --vocabulary 300 --rank 2
      mlet-tf run --config configs/demo.yaml
      mlet-tf report runs/demo
      mlet-tf serve --model_base_path runs/demo/serving/ctr &
      mlet-tf predict runs/demo/data/train.tsv --rows 5
    """  # noqa: D301 (click looks for a backspace)


@cli.command()
@click.argument("path", type=click.Path())
@click.option("--schema", default="criteo", show_default=True, help="criteo, avazu or a YAML schema.")
@click.option("--rows", default=20_000, show_default=True, type=click.IntRange(1), help="Rows to write.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same rows.")
@click.option(
    "--rank", default=8, show_default=True, type=click.IntRange(1), help="Interaction rank of the teacher."
)
@click.option(
    "--vocabulary",
    default=20_000,
    show_default=True,
    type=click.IntRange(4),
    help="Most categories of a column.",
)
@click.option("--force", is_flag=True, help="Write again although PATH exists.")
def synth(path: str, schema: str, rows: int, seed: int, rank: int, vocabulary: int, force: bool) -> None:
    """Write a synthetic click log to PATH (.gz and .parquet by its ending).

    Clicks come from a known teacher, so the best reachable AUC is known; it is stored beside the file.
    """
    from mlet_tf.datasets import load_schema
    from mlet_tf.datasets.synthetic import write_log

    if Path(path).exists() and not force:
        click.echo(f"{path} exists; --force writes it again.")
        return
    progress = _RowCounter(rows)
    report = write_log(
        path, load_schema(schema), rows, seed, rank=rank, vocabulary=vocabulary, progress=progress
    )
    progress.end()
    click.echo(
        f"{path}: {report.rows:,} rows, CTR {report.ctr:.4f}; no model can reach more than AUC {report.auc:.4f} "
        f"or less than logloss {report.logloss:.4f}."
    )


@cli.command()
@click.option("--config", "config_path", required=True, type=click.Path(), help="YAML file, see configs/.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, such as train.epochs=2."
)
def run(config_path: str, overrides: tuple[str, ...]) -> None:
    """Run the pipeline: ingest, validate, preprocess, train, collapse, gate, push.

    Ends with a table and `run.json` in the output folder. Run again with nothing changed, it does
    nothing. Exits with 3 when the gate kept the model from being pushed.
    """
    from mlet_tf.config import load_config

    resolved = load_config(config_path, overrides)
    click.echo(f"Pipeline {resolved.name!r}; everything it writes is in {resolved.output}", err=True)
    from mlet_tf.pipeline import local_runner

    result = local_runner.run(resolved)
    click.echo(_summary(result))
    if not result["pushed"]:
        for failure in result["gate_failures"]:
            click.echo(f"Gate: {failure}", err=True)
        click.echo("Not pushed.", err=True)
        sys.exit(_NOT_PUSHED)


@cli.command()
@click.argument("model", type=click.Path())
@click.argument("output", type=click.Path())
@click.option(
    "--table_dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float16", "bfloat16", "int8"]),
    help="Quantise the collapsed tables; int8 has a scale and an offset for each row.",
)
def collapse(model: str, output: str, table_dtype: str) -> None:
    """Collapse the Keras file MODEL into OUTPUT (.keras).

    Custom layers other than this package's have to be importable from the Keras file.
    """
    import keras

    from mlet_tf.collapse import collapse_model, collapse_report
    from mlet_tf.quantize import quantization_report, quantize_model

    if not Path(model).is_file():
        raise InputError(f"{model}: no such file; expected a .keras file")
    if Path(output).suffix != ".keras":
        raise InputError(f"{output}: the output should end in .keras")
    with contextlib.suppress(ImportError):  # Keras knows a DLRM once it is imported, which needs TFRS.
        importlib.import_module("mlet_tf.models")
    try:
        trained = keras.models.load_model(model, compile=False)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{model} cannot be loaded: {str(error).splitlines()[0]}") from None
    tables = collapse_report(trained)
    served = collapsed = collapse_model(trained)
    quantized = {}
    if table_dtype != "float32":
        served = quantize_model(collapsed, table_dtype)
        quantized = {record["name"]: record for record in quantization_report(collapsed, served)}
    aside = Path(output).with_name(f".unfinished.{Path(output).name}")
    served.save(aside)
    aside.replace(output)
    for table in tables:
        shape = f"[{table['rows']:,}, {table['hidden_dim']} -> {table['output_dim']}]"
        line = f"{table['name']} {shape}: {_bytes(table['bytes_before'])} -> {_bytes(table['bytes_after'])}"
        if narrow := quantized.get(table["name"]):
            line += (
                f" -> {_bytes(narrow['bytes_after'])}, {table_dtype} rows off by at most "
                f"{narrow['max_abs_difference']:.2g}"
            )
        click.echo(line)


@cli.command()
@click.option("--port", default=8500, show_default=True, help="gRPC port.")
@click.option("--rest_api_port", default=8501, show_default=True, help="REST port.")
@click.option("--model_name", default="ctr", show_default=True, help="Name of the model.")
@click.option("--model_base_path", type=click.Path(), help="Folder of the versions, as the run pushed it.")
@click.option(
    "--model_config_file", type=click.Path(), help="Several models: a ModelServerConfig text protobuf."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the stand-in server.")
@click.option("--tensorflow_model_server", help="Path of the real server; default: found by itself.")
@click.option("--stand_in", is_flag=True, help="Use the stand-in although a real server is found.")
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
    help="Most rows of a request that the stand-in takes; default: any.",
)
@click.option(
    "--timeout_seconds",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="How long a request may compute in the stand-in.",
)
def serve(**options: Any) -> None:
    """Serve pushed models over gRPC and REST until stopped.

    Starts a real tensorflow_model_server where one is found (--tensorflow_model_server, the variable
    TENSORFLOW_MODEL_SERVER, the PATH, docker), else a small stand-in for development.
    """
    from mlet_tf.serving import ServeOptions, find_model_server, run_server

    stand_in, explicit = options.pop("stand_in"), options.pop("tensorflow_model_server")
    if not options["model_base_path"] and not options["model_config_file"]:
        raise InputError("give --model_base_path or --model_config_file")
    serve_options = ServeOptions(**options)
    server = None if stand_in else find_model_server(explicit)
    if server is not None:
        command = server.command(serve_options)
        click.echo(f"Starting {' '.join(command)}", err=True)
        os.execvp(command[0], command)
    run_server(serve_options)


@cli.command()
@click.argument("source")
@click.option("--schema", default="criteo", show_default=True, help="criteo, avazu or a YAML schema.")
@click.option(
    "--rows", default=10, show_default=True, type=click.IntRange(1), help="Rows of the file to send."
)
@click.option("--server", default=None, help="HOST:PORT; default 127.0.0.1:8501, for grpc 8500.")
@click.option("--protocol", default="rest", show_default=True, type=click.Choice(["rest", "grpc"]))
@click.option("--model_name", default="ctr", show_default=True, help="Name of the model.")
@click.option("--wait", default=0.0, show_default=True, help="Seconds to wait for the server to be ready.")
def predict(
    source: str, schema: str, rows: int, server: str | None, protocol: str, model_name: str, wait: float
) -> None:
    """Send rows to a server and print a CTR for each.

    SOURCE is a raw log file, with or without the label, or one row as JSON such as '{"I1": 3, "C1": "68fd1e64"}'.
    The line of a malformed row is "nan", stderr says why, and the exit code is 1.
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


@cli.command()
@click.argument("saved_model", type=click.Path())
@click.argument("base_path", type=click.Path())
@click.option("--keep", default=3, show_default=True, type=click.IntRange(1), help="Versions to keep.")
@click.option("--version", type=int, help="Number of the version, above all earlier ones; default: the next.")
@click.option("--warmup", metavar="LOG", help="Raw log whose rows servers answer before the version is used.")
@click.option("--schema", default="criteo", show_default=True, help="LOG's: criteo, avazu or a YAML schema.")
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
    """Push the folder SAVED_MODEL as a new version below BASE_PATH.

    SAVED_MODEL stays as it is: requests to warm up with go into the new version only.
    """
    from mlet_tf.serving import push as push_model

    examples: list[bytes] = []
    if warmup:
        from mlet_tf.datasets import load_schema
        from mlet_tf.serving.rows import Rows

        log_schema = load_schema(schema)
        records = _rows(warmup, log_schema, rows)
        if records.rejects:
            raise click.ClickException(f"{warmup} has malformed rows: nothing was pushed")
        examples = Rows(records.good, log_schema).examples
    click.echo(push_model(saved_model, base_path, keep=keep, version=version, warmup=examples))


@cli.command()
@click.argument("base_path", type=click.Path())
def rollback(base_path: str) -> None:
    """Take the newest version below BASE_PATH away, so that servers go back to the one before."""
    from mlet_tf.serving import rollback as roll_back

    click.echo(roll_back(base_path))


@cli.command()
@click.argument("run_folder", metavar="RUN", type=click.Path())
@click.option("--output", type=click.Path(), help="Folder for the page and its plots; default RUN/report.")
def report(run_folder: str, output: str | None) -> None:
    """Write one self-contained HTML page and its plots about the run in folder RUN."""
    from mlet_tf.report import write_report

    click.echo(write_report(Path(run_folder), Path(output) if output else Path(run_folder) / "report"))


cli.add_command(config.config)
cli.add_command(kubeflow.compile_command)
cli.add_command(kubeflow.submit)
cli.add_command(sweep.sweep)
cli.add_command(sweep.frontier)
cli.add_command(plan.plan)
cli.add_command(worker.worker)


def _rows(source: str, schema: Any, limit: int) -> Any:
    """`LogRows` of a file or of one row as JSON; stderr gets a line for each malformed one."""
    from mlet_tf.serving.log_rows import LogRows, read_rows

    if not source.lstrip().startswith("{"):
        rows = read_rows(source, schema, limit)
        for reject in rows.rejects:
            click.echo(f"{reject.file}: line {reject.line}: {reject.reason}", err=True)
        return rows
    try:
        return LogRows.of([json.loads(source)])
    except json.JSONDecodeError as error:
        raise InputError(f"the row is not JSON: {error}") from None


class _RowCounter:
    """Shows on a terminal how many rows are written."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()

    def __call__(self, rows: int) -> None:
        if self._terminal:
            click.echo(f"\r{rows:,} of {self._total:,} rows", nl=False, err=True)

    def end(self) -> None:
        if self._terminal:
            click.echo("", err=True)


def _summary(result: dict[str, Any]) -> str:
    rows, before, after = result["rows"], result["table_bytes"]["before"], result["table_bytes"]["after"]
    lines = []
    if result["unchanged"]:
        lines.append("Nothing to do: data, configuration and code are those of the last run.")
        lines.append("(--set enable_cache=false runs it again)")
    lines.append("rows          " + ", ".join(f"{count:,} {what}" for what, count in rows.items()))
    for name, metrics in result["metrics"].items():
        text = ", ".join(f"{metric} {value:.6f}" for metric, value in metrics.items())
        lines.append(f"{name:13} {text}")
    lines.append(f"tables        {_bytes(before)} -> {_bytes(after)} ({before / after:.1f} times smaller)")
    lines.append(f"collapse      max |difference| of effective rows {result['max_abs_difference']:.3g}")
    quantization = result["quantization"]
    if quantization["table_dtype"] != "float32":
        lines.append(
            f"quantisation  to {quantization['table_dtype']}: max |difference| of rows "
            f"{quantization['max_abs_difference']:.3g}, of CTRs {quantization['max_abs_ctr_difference']:.3g}"
        )
    lines.append(f"gate          {'blessed' if result['blessed'] else 'NOT blessed'}")
    lines.append(f"pushed        {result['pushed'] or 'no'}")
    lines.append(f"details       {result['output']}/run.json")
    return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def main() -> None:
    """Entry point: a user's mistake ends with one line, not with a traceback."""
    bypass_proxy_for_loopback()
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (InputError, GateError, WorkerLostError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        click.echo(f"Error: {error.strerror}: {error.filename or 'the output'}", err=True)
        sys.exit(2)
    except RuntimeError as error:
        from mlet_tf.serving import ServingError

        if not isinstance(error, ServingError):
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
