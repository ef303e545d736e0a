"""The `mlet-tf` command: the group, and how errors are reported."""

import os
import re
import sys
import warnings

# TensorFlow's C++ log lines do not help a user of the command; errors also arrive as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

warnings.filterwarnings("ignore", category=FutureWarning, module="google")  # About Python's end of life.

import click
from mlet_tf.pipeline.cli import config, data, kubeflow, models, plan, runs, serving, shrink, sweeps, worker

from mlet_tf import __version__
from mlet_tf.errors import GateError, InputError, WorkerLostError
from mlet_tf.network import bypass_proxy_for_loopback

_REFUSED, _FAILED, _INTERRUPTED = 2, 1, 130

# The extra of each package that the library alone does not need; of TFX's dependencies, those imported first.
EXTRAS = {
    **dict.fromkeys(("tensorflow_recommenders",), "tfrs"),
    **dict.fromkeys(
        (
            "apache_beam",
            "dill",
            "fsspec",
            "google_crc32c",
            "grpc_health",
            "isal",
            "jinja2",
            "matplotlib",
            "ml_metadata",
            "pyarrow",
            "pyarrow_hotfix",
            "tensorflow_data_validation",
            "tensorflow_metadata",
            "tensorflow_model_analysis",
            "tensorflow_serving",
            "tensorflow_transform",
            "tfx",
            "tfx_bsl",
        ),
        "pipeline",
    ),
    **dict.fromkeys(("optuna", "scipy"), "experiments"),
    **dict.fromkeys(("kfp", "kfp_server_api"), "kfp"),
    **dict.fromkeys(("dask", "distributed"), "dask"),
    **dict.fromkeys(("boto3", "s3fs", "tensorflow_io"), "s3"),
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Train CTR models on raw click logs and serve them with small embedding tables.

    \b
    A first round, about five minutes on two cores:
      mlet-tf synth runs/demo/data/train.tsv --vocabulary 300 --rank 2
      mlet-tf run --config configs/demo.yaml
      mlet-tf report runs/demo
      mlet-tf serve --model_base_path runs/demo/serving/ctr &
      mlet-tf predict runs/demo/data/train.tsv --rows 5
    """  # noqa: D301 (click looks for a backspace)


for _command in (
    data.synth,
    runs.run,
    runs.report,
    config.config,
    models.collapse,
    shrink.shrink,
    serving.serve,
    serving.predict,
    serving.push,
    serving.rollback,
    kubeflow.compile_command,
    kubeflow.submit,
    sweeps.sweep,
    sweeps.frontier,
    plan.plan,
    worker.worker,
):
    cli.add_command(_command)


def main() -> None:
    """Entry point: a user's mistake ends with one line, not with a traceback."""
    bypass_proxy_for_loopback()
    try:
        cli.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        line, code = _explain(error)
        if line is None:
            raise
        click.echo(f"Error: {line}", err=True)
        sys.exit(code)


def _explain(error: Exception) -> tuple[str | None, int]:
    """One line for the user and the exit code; no line for what is a fault of this program."""
    if isinstance(error, InputError | GateError | WorkerLostError):
        return str(error), _REFUSED
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(package)
        return (
            f"{package} is not installed; this command needs mlet-tf[{extra}]" if extra else None
        ), _REFUSED
    if isinstance(error, OSError):
        return _explain_os_error(error), _REFUSED
    return _explain_library(error)


def _explain_library(error: Exception) -> tuple[str | None, int]:
    """The same for errors of libraries; of one that is not imported there is none."""
    if "tensorflow" in sys.modules and isinstance(error, sys.modules["tensorflow"].errors.OpError):
        # Messages of tf.io.gfile are "<path>; <reason>".
        found = re.match(r"((?:/|\w+://)[^;\n]*); ([A-Z][^\n]*)", error.message)
        return (f"{found[1]}: {found[2]}" if found else None), _REFUSED
    botocore = sys.modules.get("botocore.exceptions")
    if botocore is not None and isinstance(error, botocore.BotoCoreError):  # Such as missing credentials.
        return f"s3://: {error}", _REFUSED
    serving_errors = sys.modules.get("mlet_tf.serving")
    if serving_errors is not None and isinstance(error, serving_errors.ServingError):
        return str(error), _FAILED
    return None, _FAILED


def _explain_os_error(error: OSError) -> str:
    path = error.filename if error.filename2 is None else error.filename2
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    reason = error.strerror or str(error).partition("\n")[0] or type(error).__name__
    return reason if path is None else f"{path}: {reason}"


if __name__ == "__main__":
    main()
