"""The address of a model server, for both protocols."""

import ipaddress
import re
from dataclasses import dataclass

from mlet_tf.errors import InputError
from mlet_tf.network import is_loopback

_TARGET = re.compile(
    r"(?:(?P<scheme>https?)://)?"
    r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<prefix>/[!-~]*)?"
)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Target:
    """Where a server is.

    Attributes:
        host: Name or address, without brackets.
        port: 1 to 65535.
        prefix: Prefix of the paths of requests, such as `/gateway`, or empty.
        encrypted: Whether the scheme asks for TLS; None if there is no scheme.
    """

    host: str
    port: int
    prefix: str = ""
    encrypted: bool | None = None

    @classmethod
    def parse(cls, text: str, protocol: str) -> "Target":
        """Reads `host:port` or, for REST, also `http(s)://host[:port][/prefix]`.

        Raises:
            InputError: It is something else. User info, queries and spaces are refused, and so is an IPv6 address
                without brackets, whose last group might be the port.
        """
        found = _TARGET.fullmatch(text) if isinstance(text, str) else None
        scheme, prefix = (found["scheme"] or "", found["prefix"] or "") if found else ("", "")
        if (
            found is None
            or (protocol == "grpc" and scheme)
            or (not scheme and (prefix or found["port"] is None))
            or any(mark in prefix for mark in "?#")
            or not _is_host(found["name"], found["ipv6"])
            or not 1 <= (port := int(found["port"] or _PORTS[scheme])) <= 65535
        ):
            wanted = "host:port" if protocol == "grpc" else "host:port or http(s)://host:port"
            raise InputError(
                f"target: expected {wanted} for {protocol}, with a port from 1 to 65535 and an IPv6 address in "
                f"brackets. Received: {text!r}"
            )
        host = found["name"] or found["ipv6"]
        return cls(host, port, prefix.rstrip("/"), scheme == "https" if scheme else None)

    @property
    def address(self) -> str:
        """Host and port, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine's loopback interface."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return self.address + self.prefix


def _is_host(name: str | None, ipv6: str | None) -> bool:
    if name is None:
        return ipv6 is not None and _is_address(ipaddress.IPv6Address, ipv6)
    labels = name.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # Resolvers read "127.1" and "0x7f000001" as addresses too: one way to write an address is enough.
        return _is_address(ipaddress.IPv4Address, name)
    return len(name) <= 253 and all(map(_LABEL.fullmatch, labels))


def _is_address(kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
