"""`mlet-tf serve`: a real `tensorflow_model_server` if there is one, else a stand-in for development."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlet_tf.errors import InputError
from mlet_tf.storage import read_text

if TYPE_CHECKING:
    import grpc
    from tensorflow_serving.config import model_server_config_pb2

    from mlet_tf.serving.local.http_server import RestServer
    from mlet_tf.serving.local.models import ModelConfig
    from mlet_tf.serving.local.rpc import RpcServer

_log = logging.getLogger(__name__)
MODEL_SERVER_VARIABLE = "TENSORFLOW_MODEL_SERVER"
_DOCKER_IMAGE = "tensorflow/serving"
_BINARY = "tensorflow_model_server"
NOTICE = "This is the stand-in server of mlet-tf, for development and tests. Serve traffic with TF Serving."
_SIGNAL_POLL_SECONDS = 0.5
_LARGEST_PORT = 65_535


@dataclass(frozen=True)
class ServeOptions:
    """What to serve and where; the first five are named as `tensorflow_model_server` names its flags.

    Attributes:
        model_name: what requests call the model. Ignored with a `model_config_file`.
        model_base_path: the folder with its versions. Ignored with a `model_config_file`.
        model_config_file: text proto of a ModelServerConfig: several models, version policies, labels.
        port: gRPC port; 0 for any free one.
        rest_api_port: REST port; 0 for any free one, None for no REST.
        host: the address to listen on; only this machine can reach the default.
        file_system_poll_wait_seconds: how often to look for new versions.
        max_request_bytes: the largest request taken.
        max_batch_size: the largest first dimension of an input; None for no limit.
        timeout_seconds: how long one request may compute.
        grace_seconds: how long a shutdown waits for requests under way.
        grpc_threads: gRPC requests answered at the same time.
        tls_key: PEM file of the private key for gRPC over TLS.
        tls_certificate: PEM file of the certificate.
    """

    model_name: str = "ctr"
    model_base_path: str | None = None
    model_config_file: str | None = None
    port: int = 8500
    rest_api_port: int | None = 8501
    host: str = "127.0.0.1"
    file_system_poll_wait_seconds: float = 1.0
    max_request_bytes: int = 256 * 2**20
    max_batch_size: int | None = None
    timeout_seconds: float = 30.0
    grace_seconds: float = 10.0
    grpc_threads: int = 16
    tls_key: str | None = None
    tls_certificate: str | None = None

    def __post_init__(self) -> None:
        """Checks the ports: given an invalid number, gRPC would listen on another port."""
        for name in ("port", "rest_api_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= _LARGEST_PORT:
                raise InputError(f"{name}: expected a number from 0 to {_LARGEST_PORT}. Received: {value}")

    def model_configs(self) -> list["ModelConfig"]:
        """The models to serve.

        Raises:
            InputError: if there is nothing to serve, or the file cannot be read.
        """
        from mlet_tf.serving.local.models import ModelConfig

        if self.model_config_file:
            return _read_config_file(Path(self.model_config_file))
        if not self.model_base_path:
            raise InputError("model_base_path: expected the folder with the versions, received none")
        return [ModelConfig(self.model_name, _absolute(self.model_base_path))]


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())


def _read_config_file(path: Path) -> list["ModelConfig"]:
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        config = text_format.Parse(read_text(path), model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise InputError(f"{path}: not a ModelServerConfig: {error}") from error
    models = config.model_config_list.config
    names = [model.name for model in models]
    if not names or len(set(names)) != len(names) or not all(names):
        raise InputError(f"{path}: expected models with names of their own, received {names}")
    return [_model_config(path, model) for model in models]


def _model_config(path: Path, model: "model_server_config_pb2.ModelConfig") -> "ModelConfig":
    from mlet_tf.serving.local.models import ModelConfig

    if not model.base_path or ("://" not in model.base_path and not Path(model.base_path).is_absolute()):
        raise InputError(
            f"{path}: model {model.name!r} should have an absolute base_path, received {model.base_path!r}"
        )
    policy = model.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    return ModelConfig(
        name=model.name,
        base_path=model.base_path,
        latest=None if choice == "all" else max(1, policy.latest.num_versions),
        specific=tuple(policy.specific.versions) if choice == "specific" else (),
        labels=dict(model.version_labels),
    )


class LocalServer:
    """The stand-in server, running in threads of this process. Nothing is loaded before it starts.

    Args:
        options: what to serve and where.

    Example:
        with LocalServer(ServeOptions(model_base_path="runs/demo/serving/ctr", port=0)) as server:
            CTRClient(f"127.0.0.1:{server.port}").predict(rows)
    """

    def __init__(self, options: ServeOptions) -> None:
        from mlet_tf.serving.local.models import Models

        self.options = options
        self._models = Models(
            options.model_configs(),
            timeout_seconds=options.timeout_seconds,
            max_batch_size=options.max_batch_size,
        )
        self._stopping = threading.Event()
        self._poller = threading.Thread(target=self._poll_forever, name="poll", daemon=True)
        self._servers: list[RpcServer | RestServer] = []
        self.port = 0
        self.rest_api_port: int | None = None

    def start(self, *, wait_seconds: float | None = None) -> "LocalServer":
        """Loads the models, then opens the ports.

        Args:
            wait_seconds: how long to wait for versions to appear; None for ever.

        Raises:
            InputError: if a model has no version that loads, a label is for a version that is not there, or
                a port cannot be had.
        """
        self._models.poll()
        waited = 0.0
        while not self._models.ready():
            if failures := self._models.failures():
                raise InputError("no version could be loaded: " + "; ".join(failures))
            if wait_seconds is not None and waited >= wait_seconds:
                paths = ", ".join(config.base_path for config in self.options.model_configs())
                raise InputError(f"{paths}: expected a folder named as an integer, found none")
            if waited == 0.0:
                _log.warning("waiting for a version of each model to appear")
            if self._stopping.wait(self.options.file_system_poll_wait_seconds):
                return self
            waited += self.options.file_system_poll_wait_seconds
            self._models.poll()
        if unavailable := self._models.unavailable_labels():
            raise InputError("; ".join(unavailable))
        try:
            self._open_ports()
        except BaseException:
            self.stop()
            raise
        self._poller.start()
        return self

    def request_stop(self) -> None:
        """Makes `start` give up waiting and `wait_for_stop_request` return; not from a signal handler."""
        self._stopping.set()

    def wait_for_stop_request(self) -> None:
        """Waits for `request_stop`."""
        # In intervals: a signal just before the thread goes to sleep does not wake it.
        while not self._stopping.wait(_SIGNAL_POLL_SECONDS):
            pass

    def stop(self) -> None:
        """Takes no more requests, answers those under way, and frees the models."""
        self._stopping.set()
        stopping = [
            threading.Thread(target=server.stop, args=(self.options.grace_seconds,))
            for server in self._servers
        ]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        if self._poller.is_alive():
            self._poller.join()
        self._models.close()

    def __enter__(self) -> "LocalServer":
        """Starts, unless there is no version within ten seconds."""
        return self.start(wait_seconds=10.0)

    def __exit__(self, *_: object) -> None:
        """Stops."""
        self.stop()

    def _open_ports(self) -> None:
        from mlet_tf.serving.local.http_server import RestServer
        from mlet_tf.serving.local.rest import Rest
        from mlet_tf.serving.local.rpc import RpcServer

        options = self.options
        rpc = RpcServer(
            self._models,
            options.host,
            options.port,
            options.max_request_bytes,
            options.grpc_threads,
            _tls_credentials(options),
        )
        self._servers.append(rpc)
        self.port = rpc.port
        if options.rest_api_port is None:
            return
        try:
            rest = RestServer(
                Rest(self._models), options.host, options.rest_api_port, options.max_request_bytes
            )
        except OSError as error:
            raise InputError(
                f"rest_api_port: cannot listen on {options.host}:{options.rest_api_port} ({error.strerror})"
            ) from error
        self._servers.append(rest)
        self.rest_api_port = rest.port

    def _poll_forever(self) -> None:
        while not self._stopping.wait(self.options.file_system_poll_wait_seconds):
            self._models.poll()


def _tls_credentials(options: ServeOptions) -> "grpc.ServerCredentials | None":
    import grpc

    if not options.tls_key and not options.tls_certificate:
        return None
    if not options.tls_key or not options.tls_certificate:
        raise InputError("tls_key, tls_certificate: expected both or none, received one")
    try:
        pair = (Path(options.tls_key).read_bytes(), Path(options.tls_certificate).read_bytes())
    except OSError as error:
        raise InputError(f"{error.filename}: cannot read ({error.strerror})") from error
    return grpc.ssl_server_credentials([pair])


def run_server(options: ServeOptions) -> None:
    """Runs the stand-in server in this process until SIGTERM or SIGINT, then lets requests finish.

    Args:
        options: what to serve and where.

    Raises:
        InputError: if a model has no version that loads, a label is for a version that is not there, or a port
            cannot be had.
    """
    server = LocalServer(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        # From a thread: the handler interrupts the main thread, which may hold the event's lock.
        signal.signal(number, lambda *_: threading.Thread(target=server.request_stop).start())
    print(NOTICE, file=sys.stderr, flush=True)
    server.start()
    if server.port:
        rest = f", REST on {options.host}:{server.rest_api_port}" if server.rest_api_port else ""
        print(f"gRPC on {options.host}:{server.port}{rest}", file=sys.stderr, flush=True)
    server.wait_for_stop_request()
    print("shutting down", file=sys.stderr, flush=True)
    server.stop()


@dataclass(frozen=True)
class ModelServer:
    """A real model server that was found.

    Attributes:
        kind: "binary" or "docker".
        path: the program.
    """

    kind: str
    path: str

    def command(self, options: ServeOptions) -> list[str]:
        """The command line that serves the same as `run_server(options)` would.

        Raises:
            InputError: if there is nothing to serve, or the model configuration cannot be read.
        """
        flags = [f"--port={options.port}"]
        if options.rest_api_port is not None:
            flags.append(f"--rest_api_port={options.rest_api_port}")
        configs = options.model_configs()
        if options.model_config_file:
            flags.append(f"--model_config_file={_absolute(options.model_config_file)}")
        else:
            flags += [f"--model_name={configs[0].name}", f"--model_base_path={configs[0].base_path}"]
        if any(config.labels for config in configs):
            # Labels are assigned before the versions are loaded; without this the server exits at the start.
            flags.append("--allow_version_labels_for_unavailable_models=true")
        poll = max(1, round(options.file_system_poll_wait_seconds))
        # The default number of load retries stays: a version on an object store may be incomplete for a while.
        flags += [f"--file_system_poll_wait_seconds={poll}", "--enable_grpc_healthcheck_service=true"]
        if self.kind == "binary":
            return [self.path, *flags]
        return [self.path, "run", "--rm", "--init", *self._docker_flags(options), _DOCKER_IMAGE, *flags]

    def _docker_flags(self, options: ServeOptions) -> list[str]:
        folders = {config.base_path for config in options.model_configs()}
        if options.model_config_file:
            folders.add(str(Path(options.model_config_file).absolute().parent))
        mounts = [f"--volume={folder}:{folder}:ro" for folder in sorted(folders) if "://" not in folder]
        ports = [port for port in (options.port, options.rest_api_port) if port]
        published = [f"--publish={options.host}:{port}:{port}" for port in ports]
        return [*mounts, *published, f"--entrypoint={_BINARY}"]


def find_model_server(explicit: str | None = None) -> ModelServer | None:
    """Looks for a real model server: as told, in the environment, on PATH, as a docker image at hand.

    Args:
        explicit: the program to use, from a flag.

    Returns:
        The server, or None where there is only the stand-in. Nothing is downloaded.

    Raises:
        InputError: if the flag or TENSORFLOW_MODEL_SERVER names something that cannot be run.
    """
    for source, named in (
        ("model server", explicit),
        (MODEL_SERVER_VARIABLE, os.environ.get(MODEL_SERVER_VARIABLE)),
    ):
        if named:
            found = shutil.which(named)
            if not found:
                raise InputError(f"{source}: expected a program that can be run, received {named!r}")
            return ModelServer("binary", found)
    if found := shutil.which(_BINARY):
        return ModelServer("binary", found)
    docker = shutil.which("docker")
    if docker and _has_image(docker):
        return ModelServer("docker", docker)
    return None


def _has_image(docker: str) -> bool:
    try:
        command = [docker, "image", "inspect", _DOCKER_IMAGE]
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
