"""Proxies of the environment: none comes between this machine and its own ports, and none gets to read a token."""

import asyncio
import os
import socket
import threading
from unittest import mock

import pytest
from fake_servers import Answering

from mlet_tf.errors import InputError
from mlet_tf.network import bypass_proxy_for_loopback, is_loopback
from mlet_tf.serving import AsyncCTRClient, CTRClient, ServingError

VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


@pytest.fixture
def proxy():
    """Sets all variables that name a proxy to one that keeps what it is sent; gives the list."""
    seen = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                seen.append(connection.recv(65536).decode())

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with mock.patch.dict(os.environ):
        for name in list(os.environ):
            if name.lower() in ("no_proxy", "no_grpc_proxy"):
                del os.environ[name]
        for name in VARIABLES:
            os.environ[name] = os.environ[name.upper()] = url
        yield seen
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def target(flaky, http_server):
    class Handler(Answering):
        def reply(self, _):
            return 200, '{"outputs": [0.5]}'

    return {"grpc": flaky()[1], "rest": http_server(Handler)}


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "[::ffff:127.0.0.1]"])
def test_loopback_is_never_proxied(proxy, target, protocol, host):
    """Nor is a token of it readable anywhere."""
    address = target[protocol].replace("127.0.0.1", host)
    with CTRClient(address, protocol=protocol, token="secret", timeout=300) as client:
        assert client.predict([{}]).tolist() == [0.5]

    async def main():
        async with AsyncCTRClient(address, protocol=protocol, token="secret", timeout=300) as client:
            return (await client.predict([{}])).tolist()

    assert asyncio.run(main()) == [0.5]
    assert proxy == []


def test_another_machine_is_reached_through_the_proxy_over_grpc(proxy):
    """So the variables were set right above; what goes through in clear has no token."""
    with CTRClient("models.example:8500", retries=0, timeout=300) as client, pytest.raises(ServingError):
        client.status()
    assert proxy[0].startswith("CONNECT models.example:8500 ")


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize(
    "host", ["models.example", "10.0.0.1", "localhost.models.example", "[::2]", "0.0.0.0"]
)
def test_a_token_for_another_machine_needs_tls(proxy, protocol, host):
    for address in [f"{host}:8500"] + [f"http://{host}:8500"] * (protocol == "rest"):
        with pytest.raises(InputError, match=r"^token: expected tls with it, as .* is another machine"):
            CTRClient(address, protocol=protocol, token="secret")
    CTRClient(f"{host}:8500", protocol=protocol, token="secret", tls=True).close()
    assert proxy == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("LOCALHOST.", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
        ("::ffff:127.0.0.1", True), ("", False), ("localhost.example", False), ("127.0.0.1.example", False),
        ("10.0.0.1", False), ("::2", False), ("0.0.0.0", False), ("::ffff:10.0.0.1", False),
    ],
)  # fmt: skip
def test_which_hosts_are_loopback(host, expected):
    assert is_loopback(host) is expected


LOOPBACK = "localhost,127.0.0.1,::1"
OF_GRPC = "no_grpc_proxy"


@pytest.mark.parametrize(
    ("before", "no_proxy", "no_grpc_proxy"),
    [
        ({}, LOOPBACK, LOOPBACK),
        ({"no_proxy": ""}, LOOPBACK, LOOPBACK),
        ({"no_proxy": "a.example, 127.0.0.1"}, "a.example,127.0.0.1,localhost,::1", None),
        ({"NO_PROXY": "a.example"}, f"a.example,{LOOPBACK}", None),
        ({"no_grpc_proxy": "b.example"}, LOOPBACK, f"b.example,{LOOPBACK}"),
        ({"no_proxy": "*"}, "*", f"*,{LOOPBACK}"),
    ],
)
def test_loopback_is_added_to_what_is_excepted_already(proxy, before, no_proxy, no_grpc_proxy):
    os.environ.update(before)
    for _ in range(2):
        bypass_proxy_for_loopback()
        assert os.environ["no_proxy"] == no_proxy
        assert os.environ.get(OF_GRPC) == (no_grpc_proxy or no_proxy)


def test_python_and_its_http_libraries_go_to_loopback_directly(proxy, target):
    import urllib.request

    bypass_proxy_for_loopback()
    assert urllib.request.urlopen(f"http://{target['rest']}/", timeout=300).status == 200
    assert proxy == []


def test_the_command_excepts_loopback_for_itself_and_its_children(proxy, monkeypatch):
    from mlet_tf.pipeline.cli.main import main

    monkeypatch.setattr("sys.argv", ["mlet-tf", "--version"])
    main()
    assert os.environ["no_proxy"] == os.environ.get(OF_GRPC) == LOOPBACK


def test_beams_workers_find_loopback_excepted(proxy, tmp_path):
    """They inherit the environment that there is when the pipeline is made; without it they hang."""
    from mlet_tf.components.beam import run_tasks

    def make_pipeline():
        assert os.environ.get(OF_GRPC) == LOOPBACK
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        run_tasks(make_pipeline, len, ["task"], str(tmp_path / "results"))


def test_processes_of_a_training_find_loopback_excepted(proxy):
    from mlet_tf.distributed import Cluster
    from mlet_tf.distributed.workers import Workers

    Workers.join(Cluster())
    assert os.environ.get(OF_GRPC) == LOOPBACK


@pytest.mark.parametrize(
    "endpoint", ["http://kfp.example", "kfp.example:8888", "http://10.0.0.1", "http://[::1"]
)
def test_a_token_of_kubeflow_needs_tls(proxy, endpoint, tmp_path, monkeypatch):
    from click.testing import CliRunner
    from mlet_tf.pipeline.cli.main import cli

    monkeypatch.setenv("KFP_TOKEN", "secret")
    package = tmp_path / "pipeline.yaml"
    package.write_text("root: {inputDefinitions: {parameters: {}}}\npipelineInfo: {name: little}\n")
    result = CliRunner().invoke(cli, ["submit", "--endpoint", endpoint, "--package", str(package)])
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == f"KFP_TOKEN: expected https:// with it, as {endpoint} is another machine"
    assert proxy == []
