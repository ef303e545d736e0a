"""The REST interface of the stand-in server."""

import contextlib
import logging
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    model_pb2,
    regression_pb2,
)

from mlet_tf.serving.local import json_answer, json_request
from mlet_tf.serving.local.models import Models
from mlet_tf.serving.local.proto_json import to_json
from mlet_tf.serving.local.servable import Servable
from mlet_tf.serving.local.status import Code, StatusError, invalid

_log = logging.getLogger(__name__)
_JSON = "application/json"
_HTML = "text/html"
_BARE = "text/html; charset=ISO-8859-1"
_VERSION = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
_POST = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)", re.ASCII | re.IGNORECASE
)
_GET = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<method>metadata))?", re.ASCII | re.IGNORECASE
)
# A request's target by RFC 3986: scheme, then an authority after two slashes, path, query and fragment.
_PATH_CHARACTERS = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9a-fA-F]{2})"
_TARGET = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*:)?(?://[A-Za-z0-9\-._~!$&'()*+,;=:@%\[\]]*(?=[/?#]|$))?"
    rf"(?P<path>{_PATH_CHARACTERS}*(?:\?(?:{_PATH_CHARACTERS}|\?)*)?(?:#(?:{_PATH_CHARACTERS}|\?)*)?)"
)
REASONS = {400: "Bad Request", 404: "Not Found", 413: "Request Entity Too Large", 501: "Not Implemented"}
_HTTP_STATUS = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}


@dataclass(frozen=True)
class Answer:
    """What goes back to the caller."""

    status: int
    body: bytes
    content_type: str


class Rest:
    """Answers REST requests; no sockets here.

    Args:
        models: the models to query.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    def answer(self, method: str, target: str, body: bytes, *, has_origin: bool = False) -> Answer:
        """The answer to one request.

        Args:
            method: the HTTP method.
            target: what the request line asks for: a path, or a whole address.
            body: the bytes received.
            has_origin: whether there is an Origin header of a web page.
        """
        path = _path_of(target)
        if path is None:
            return html_error(400)
        if not re.fullmatch(r"/v1/.*", path, re.IGNORECASE | re.DOTALL):
            return html_error(404)
        if method == "OPTIONS":
            return Answer(200 if has_origin else 400, b"", _BARE)
        return self._answer_api(method, path, body)

    def _answer_api(self, method: str, path: str, body: bytes) -> Answer:
        try:
            text = self._json(method, path, body)
            return Answer(200, text.encode("utf-8", "surrogateescape"), _JSON)
        except _VersionOverflowError:
            return Answer(400, b"", _JSON)
        except StatusError as error:
            return _refusal(error)
        except Exception as error:  # A bug of this server must not close the connection.
            _log.exception("%s %s failed", method, path)
            return _refusal(StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}"))

    def _json(self, method: str, path: str, body: bytes) -> str:
        pattern = {"POST": _POST, "GET": _GET}.get(method)
        match = pattern.fullmatch(path) if pattern else None
        if match is None:
            raise invalid(f"Malformed request: {method} {path}")
        spec = _model_spec(match)
        verb = match["method"]
        if method == "GET":
            if not spec.name:
                raise invalid("Missing model name in request.")
            return self._metadata(spec) if verb == "metadata" else to_json(self._models.status(spec))
        verbs = {"predict": self._predict, "classify": self._classify, "regress": self._regress}
        if verb not in verbs:
            raise invalid(f"Malformed request: {method} {path}")
        return verbs[verb](spec, body)

    def _predict(self, spec: model_pb2.ModelSpec, body: bytes) -> str:
        with contextlib.ExitStack() as stack:
            held: list[Servable] = []

            def input_types(name: str) -> dict[str, int]:
                held.append(stack.enter_context(self._models.use(spec)))
                return held[0].input_types(name)

            request = json_request.predict_body(body, input_types)
            outputs = held[0].predict(request.signature_name, request.inputs)
            return json_answer.predict_answer(outputs, by_row=request.by_row)

    def _classify(self, spec: model_pb2.ModelSpec, body: bytes) -> str:
        name, examples = json_request.examples_body(body)
        with self._models.use(spec) as servable:
            _set_signature(spec, name)
            request = classification_pb2.ClassificationRequest(model_spec=spec, input=examples)
            return json_answer.classify_answer(servable.classify(request).result)

    def _regress(self, spec: model_pb2.ModelSpec, body: bytes) -> str:
        name, examples = json_request.examples_body(body)
        with self._models.use(spec) as servable:
            _set_signature(spec, name)
            request = regression_pb2.RegressionRequest(model_spec=spec, input=examples)
            return json_answer.regress_answer(servable.regress(request).result)

    def _metadata(self, spec: model_pb2.ModelSpec) -> str:
        with self._models.use(spec) as servable:
            found = model_pb2.ModelSpec(name=servable.name)
            found.version.value = servable.version
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
        return (
            f'{{\n"model_spec":{to_json(found, proto_names=True)},\n'
            f'"metadata": {{"signature_def": {to_json(signatures, proto_names=True)}}}\n}}\n'
        )


def _set_signature(spec: model_pb2.ModelSpec, name: str) -> None:
    try:
        spec.signature_name = name
    except ValueError:  # Not UTF-8, so no model has this name.
        raise invalid(f"No signature was found with the name: {name}") from None


def _refusal(error: StatusError) -> Answer:
    text = json_answer.error_answer(error.message)
    return Answer(_HTTP_STATUS.get(error.code, 500), text.encode("utf-8", "surrogateescape"), _JSON)


class _VersionOverflowError(Exception):
    """The version is no 64-bit integer; the real server sends 400 and no words."""


def _model_spec(match: re.Match) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=_unquote(match["name"] or ""))
    if match["version"]:
        number = int(match["version"])
        if number >= 2**63:
            raise _VersionOverflowError
        spec.version.value = number
    if match["label"]:
        spec.version_label = _unquote(match["label"])
    return spec


def _path_of(target: str) -> str | None:
    """Path, query and fragment of a request's target; None where it is malformed."""
    match = _TARGET.fullmatch(target)
    if match is None or (not match["scheme"] and ":" in match["path"].partition("/")[0]):
        return None
    return match["path"]


def _unquote(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1", "replace")).decode("utf-8", "replace")


def html_error(status: int) -> Answer:
    """The page that the HTTP layer itself answers with."""
    reason = REASONS.get(status, "Error")
    page = (
        f"<HTML><HEAD>\n<TITLE>{status} {reason}</TITLE>\n</HEAD><BODY>\n<H1>{reason}</H1>\n</BODY></HTML>\n"
    )
    return Answer(status, page.encode(), _HTML)
