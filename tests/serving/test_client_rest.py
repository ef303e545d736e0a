"""The client over REST: kept connections, deadlines, and answers that no model server gives."""

import contextlib
import json
import math
import socket
import ssl
import threading
import time

import pytest
from fake_servers import Answering

from mlet_tf.serving import CTRClient, ServingError, Tls
from mlet_tf.serving.rows import Rows


def test_rest_keeps_its_connection_and_survives_its_loss(http_server):
    connections, requests = [], []

    class Handler(Answering):
        def setup(self):
            connections.append(1)
            super().setup()

        def reply(self, _):
            requests.append(1)
            # Closed without a word, as servers do with connections that were idle for long.
            self.close_connection = len(requests) == 3
            return (503, '{"error": "busy"}') if len(requests) in (4, 5) else (200, '{"outputs": [0.25]}')

    with CTRClient(http_server(Handler), protocol="rest", backoff=0.01) as client:
        for _ in range(4):
            assert client.predict([{}]).tolist() == [0.25]
    assert len(requests) == 6
    assert len(connections) == 2


def test_a_port_that_does_not_speak_http_is_named_in_one_readable_line():
    """Such as the gRPC port of a server: its bytes are no text for a terminal."""

    def answer(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x1b[2J\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with CTRClient(address, protocol="rest", retries=0) as client, pytest.raises(ServingError) as caught:
            client.predict([{}])
        thread.join()
    assert caught.value.code == "UNAVAILABLE"
    assert "is this a gRPC port?" in str(caught.value) and str(caught.value).isprintable()


def test_threads_share_a_bounded_number_of_connections(http_server):
    lock, connections = threading.Lock(), {"ever": 0, "open": 0, "most": 0}

    class Handler(Answering):
        def setup(self):
            with lock:
                connections["ever"] += 1
                connections["open"] += 1
                connections["most"] = max(connections["most"], connections["open"])
            super().setup()

        def finish(self):
            super().finish()
            with lock:
                connections["open"] -= 1

        def reply(self, body):
            time.sleep(0.05)
            return 200, json.dumps({"outputs": [len(json.loads(body)["inputs"]["examples"][0]["b64"])]})

    answers = {}

    def ask(number):
        answers[number] = client.predict([{"C1": "x" * 3 * number}])[0]

    with CTRClient(http_server(Handler), protocol="rest", timeout=300, retries=0) as client:
        for number in range(20):
            thread = threading.Thread(target=ask, args=(number,))
            thread.start()
            thread.join()
        assert connections["ever"] == 1
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 2 <= connections["most"] <= 64
    # The length of an example, as sent: nobody got another's answer.
    assert answers == {n: 4 * math.ceil(len(Rows([{"C1": "x" * 3 * n}]).examples[0]) / 3) for n in range(200)}
    end = time.monotonic() + 300
    while connections["open"] and time.monotonic() < end:
        time.sleep(0.01)
    assert connections["open"] == 0


ANSWER = b'HTTP/1.1 200 OK\r\nServer: slow\r\nContent-Length: 18\r\n\r\n{"outputs":[0.25]}'


@pytest.mark.parametrize("quick", [None, 0, 17, 60], ids=["request", "status", "head", "body"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_rest_deadline_holds_however_slowly_a_server_goes_on(certificate, quick, encrypted):
    """`quick` bytes of the answer come at once, each further one after 0.1 s; or the request is read slowly."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.settimeout(2)
    stopped = threading.Event()

    def answer(connection):
        with connection:
            while quick is None and not stopped.wait(0.01):
                connection.recv(20_000)
            connection.recv(65536)
            connection.sendall(ANSWER[:quick])
            for byte in ANSWER[quick:]:
                if stopped.wait(0.1):
                    return
                connection.sendall(bytes([byte]))

    def serve():
        # A client on a busy machine may be over its time before it connects.
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            if encrypted:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*certificate)
                accepted = context.wrap_socket(accepted, server_side=True)
            answer(accepted)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    tls = Tls(ca=certificate[0], server_name="models.example") if encrypted else None
    row = {"C1": "x" * (4_000_000 if quick is None else 10)}
    begin = time.monotonic()
    with (
        CTRClient(f"127.0.0.1:{listener.getsockname()[1]}", protocol="rest", timeout=0.5, tls=tls) as client,
        pytest.raises(ServingError, match="DEADLINE_EXCEEDED"),
    ):
        client.predict([row])
    took = time.monotonic() - begin
    stopped.set()
    thread.join(20)
    listener.close()
    assert 0.4 < took < 60


def test_a_rest_deadline_holds_however_many_addresses_do_not_answer(monkeypatch):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):  # Fills what the listener takes without accepting.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found] * 200)
        begin = time.monotonic()
        with (
            CTRClient("many.example:80", protocol="rest", timeout=0.5) as client,
            pytest.raises(ServingError, match="DEADLINE_EXCEEDED"),
        ):
            client.predict([{}])
        assert 0.4 < time.monotonic() - begin < 60


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[0.5]",
        "null",
        "no JSON",
        "[" * 100_000,
        '{"outputs": null}',
        '{"outputs": [null]}',
        '{"outputs": ["0.5"]}',
        '{"outputs": [[0.5], [0.5, 0.5]]}',
        '{"outputs": [0.5, 0.5]}',
        '{"outputs": {"a": [0.5], "b": [0.5]}}',
        '{"model_version_status": [{}]}',
        '{"model_version_status": [{"version": "one", "state": "AVAILABLE"}]}',
        '{"metadata": {"signature_def": []}}',
    ],
    ids=lambda text: text[:40],
)
def test_an_answer_that_no_model_server_gives_is_an_internal_error(http_server, text):
    class Handler(Answering):
        def reply(self, _):
            return 200, text

    with CTRClient(http_server(Handler), protocol="rest") as client:
        for ask in (client.status, client.metadata, lambda: client.predict([{}])):
            with pytest.raises(ServingError) as caught:
                ask()
            assert caught.value.code == "INTERNAL"
