"""Loopback addresses, and reaching them without a proxy."""

import ipaddress
import os

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether a host, without port or brackets, is this machine's loopback interface."""
    if host.lower().removesuffix(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def bypass_proxy_for_loopback() -> None:
    """Exempts loopback from the proxies named in the environment, for this process and its children.

    Libraries that open connections on their own (Beam's workers, TensorFlow's collectives, object stores) would
    otherwise ask the proxy for this machine's ports. Python's HTTP clients and libcurl read `no_proxy`. gRPC reads
    `no_grpc_proxy` first, and knows no `*`.
    """
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    of_grpc = os.environ.get("no_grpc_proxy", excepted)  # noqa: SIM112 (gRPC knows no other)
    os.environ["no_grpc_proxy"] = _with_loopback(of_grpc)  # noqa: SIM112
    if excepted.strip() != "*":  # Means all hosts, but only if it stands alone.
        os.environ["no_proxy"] = _with_loopback(excepted)


def _with_loopback(hosts: str) -> str:
    listed = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join([*listed, *(host for host in _LOOPBACK if host not in listed)])
