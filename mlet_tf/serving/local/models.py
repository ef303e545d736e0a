"""The models of a server: which versions to serve, loading and dropping them while requests run."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from mlet_tf.errors import InputError
from mlet_tf.serving.local.graph import CODES
from mlet_tf.serving.local.servable import Servable
from mlet_tf.serving.local.status import Code, StatusError, invalid
from mlet_tf.serving.push import list_versions
from mlet_tf.storage import exists, file_stamp, tree

_log = logging.getLogger(__name__)
_State = get_model_status_pb2.ModelVersionStatus.State


@dataclass(frozen=True)
class ModelConfig:
    """A model to serve.

    Attributes:
        name: what requests call it.
        base_path: the folder with its versions.
        latest: how many of the newest versions to serve; None for all.
        specific: the versions to serve, regardless of newer ones; empty for `latest`.
        labels: names for versions.
    """

    name: str
    base_path: str
    latest: int | None = 1
    specific: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Version:
    """What is known of one version. Changes under the lock of `Models` only."""

    state: int
    servable: Servable | None = None
    users: int = 0
    leaving: bool = False
    code: Code = Code.OK
    message: str = ""
    # State of the files when loading failed: it is tried again when they change.
    failed_with: tuple = ()


class Models:
    """Loads and unloads versions as folders come and go; a version is dropped once its successor answers.

    Args:
        configs: the models.
        timeout_seconds: the limit of one run.
        max_batch_size: the limit of one input's first dimension.
    """

    def __init__(
        self,
        configs: list[ModelConfig],
        *,
        timeout_seconds: float = 30.0,
        max_batch_size: int | None = None,
    ) -> None:
        self._configs = {config.name: config for config in configs}
        self._timeout_seconds, self._max_batch_size = timeout_seconds, max_batch_size
        self._versions: dict[str, dict[int, _Version]] = {name: {} for name in self._configs}
        self._lock = threading.Condition()
        self._polling = threading.Lock()

    # --- life cycle ---------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Looks at the folders once, loads what is new, then drops what is no longer wanted."""
        with self._polling:
            for config in self._configs.values():
                try:
                    self._poll_model(config)
                except InputError:
                    raise
                except Exception as error:  # The other models continue; the next poll may find the folder.
                    _log.warning(
                        "%s: cannot look for versions in %s: %s", config.name, config.base_path, error
                    )

    def ready(self) -> bool:
        """Whether each model has a version that answers."""
        with self._lock:
            return all(
                any(version.state == _State.AVAILABLE for version in versions.values())
                for versions in self._versions.values()
            )

    def unavailable_labels(self) -> list[str]:
        """Labels for versions that do not answer."""
        with self._lock:
            return [
                f"{config.name}: label {label!r} is for version {number}, which is not available"
                for config in self._configs.values()
                for label, number in config.labels.items()
                if self._find(config.name, number) is None
            ]

    def failures(self) -> list[str]:
        """What went wrong with the versions that could not be loaded."""
        with self._lock:
            return [
                f"{name} version {number}: {version.message}"
                for name, versions in self._versions.items()
                for number, version in versions.items()
                if version.failed_with
            ]

    def close(self) -> None:
        """Drops all versions, waiting for the requests they answer."""
        with self._polling:
            for name, versions in self._versions.items():
                for number in list(versions):
                    self._drop(name, number)

    def _poll_model(self, config: ModelConfig) -> None:
        if not exists(config.base_path):
            _log.warning("%s: base path %s is not there", config.name, config.base_path)
            return
        found = list_versions(config.base_path)
        wanted = []
        for number in sorted(found, reverse=True):
            if config.specific and number not in config.specific:
                continue
            if self._load(config.name, number, found[number]):
                wanted.append(number)
            if not config.specific and config.latest is not None and len(wanted) == config.latest:
                break
        with self._lock:
            serving = [n for n, version in self._versions[config.name].items() if version.servable]
        for number in serving:
            if number not in wanted:
                self._drop(config.name, number)

    def _load(self, name: str, number: int, path: str) -> bool:
        """Whether the version is there to answer in the end."""
        with self._lock:
            known = self._versions[name].get(number)
            if known and known.servable:
                return True
        fingerprint = _fingerprint(path)
        if known and known.failed_with == fingerprint:
            return False
        with self._lock:
            entry = self._versions[name][number] = _Version(_State.LOADING)
        try:
            servable = Servable(
                name,
                number,
                path,
                timeout_seconds=self._timeout_seconds,
                max_batch_size=self._max_batch_size,
            )
        except Exception as error:  # A broken model may raise anything; the server continues with the others.
            code, message = _explain(error)
            with self._lock:
                entry.state, entry.code, entry.message = _State.END, code, message
                entry.failed_with = fingerprint
            _log.error("%s: cannot load version %d from %s: %s", name, number, path, message)
            return False
        with self._lock:
            entry.servable, entry.state = servable, _State.AVAILABLE
        _log.info("%s: version %d answers", name, number)
        return True

    def _drop(self, name: str, number: int) -> None:
        with self._lock:
            entry = self._versions[name][number]
            if entry.servable is None:
                return
            entry.state, entry.leaving = _State.UNLOADING, True
            self._lock.wait_for(lambda: entry.users == 0)
            servable, entry.servable = entry.servable, None
        servable.close()
        with self._lock:
            entry.state = _State.END
        _log.info("%s: version %d is unloaded", name, number)

    # --- requests -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def use(self, spec: model_pb2.ModelSpec) -> Iterator[Servable]:
        """Holds the version that a request asks for while it is answered."""
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        number = self._asked_version(spec)
        with self._lock:
            entry = self._find(spec.name, number)
            if entry is None or entry.servable is None:
                wanted = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
                raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")
            entry.users += 1
            servable = entry.servable
        try:
            yield servable
        finally:
            with self._lock:
                entry.users -= 1
                self._lock.notify_all()

    def _asked_version(self, spec: model_pb2.ModelSpec) -> int | None:
        choice = spec.WhichOneof("version_choice")
        if choice == "version":
            return spec.version.value
        if choice == "version_label":
            config = self._configs.get(spec.name)
            if config is None or spec.version_label not in config.labels:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            return config.labels[spec.version_label]
        return None

    def _find(self, name: str, number: int | None) -> _Version | None:
        versions = self._versions.get(name, {})
        usable = [n for n, version in versions.items() if version.servable and not version.leaving]
        if number is None:
            number = max(usable, default=None)
        return versions[number] if number in usable else None

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """The states of a model's versions, newest first."""
        response = get_model_status_pb2.GetModelStatusResponse()
        with self._lock:
            versions = dict(self._versions.get(spec.name, {}))
            if spec.HasField("version"):
                number = spec.version.value
                if number not in versions:
                    raise StatusError(Code.NOT_FOUND, f"Could not find version {number} of model {spec.name}")
                versions = {number: versions[number]}
            if not versions:
                raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
            for number in sorted(versions, reverse=True):
                entry = versions[number]
                status = response.model_version_status.add(version=number, state=entry.state)
                status.status.error_code = entry.code.value[0]
                status.status.error_message = entry.message
        return response


def _explain(error: Exception) -> tuple[Code, str]:
    if isinstance(error, StatusError):
        return error.code, error.message
    if isinstance(error, tf.errors.OpError):
        return CODES[error.error_code], error.message
    return (Code.NOT_FOUND if isinstance(error, OSError) else Code.UNKNOWN), str(error)


def _fingerprint(path: str) -> tuple:
    """The names, sizes and times of a version's files."""
    return (path, *((name, *_stamp(f"{path}/{name}")) for name in tree(path)))


def _stamp(path: str) -> tuple:
    try:
        return file_stamp(path)
    except OSError:  # Removed since the folder was listed, or a dangling link.
        return ()
