"""Which addresses a function may not reach, in the form that Deno checks resolved addresses by.

IPv6 is closed as a whole, by the socket filter of confine.py: Deno's list takes no IPv6 ranges.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

# Everything that is not the public internet: this host, private networks, link-local with the
# metadata services, carrier-grade NAT, benchmarks, documentation, multicast, reserved.
CLOSED = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
PUBLIC_METADATA = ("168.63.129.16",)  # a cloud's own service at a public-looking address
MAIL_PORTS = (25, 465, 587)  # 465 and 587 too: mail goes through an API, or not from here
LOOPBACK_V6 = ("[::]", "[::1]")
LEAF = re.compile(r"\s*\|-- ([0-9.]+)\s*$")
LOCAL = re.compile(r"\s*/([0-9]+) host LOCAL\s*$")
HOST = re.compile(
    r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
    r"(?::[0-9]{1,5})?",
    re.IGNORECASE,
)


def own_addresses(trie: Path = Path("/proc/net/fib_trie")) -> list[str]:
    """The IPv4 addresses of this machine outside CLOSED, and networks that it takes as its own:
    services listen on them too."""
    try:
        lines = trie.read_text().splitlines()
    except OSError:
        return []
    closed = [ipaddress.IPv4Network(network) for network in CLOSED]
    found = set()
    address = ""
    for line in lines:
        leaf = LEAF.match(line)
        if leaf is not None:
            address = leaf[1]
        local = LOCAL.match(line)
        if local is not None and address:
            network = ipaddress.IPv4Network(f"{address}/{local[1]}", strict=False)
            if not any(network.subnet_of(other) for other in closed):
                found.add(address if network.prefixlen == 32 else str(network))
    return sorted(found)


def denied(extra: list[str] | None = None) -> str:
    """The value of Deno's --deny-net. extra: further addresses."""
    ports = (f"0.0.0.0/0:{port}" for port in MAIL_PORTS)
    return ",".join([*CLOSED, *PUBLIC_METADATA, *LOOPBACK_V6, *ports, *(extra or [])])


def check_allowed(hosts: list[str]) -> str | None:
    """What is wrong with a function's outbound allow-list, None when nothing is."""
    for host in hosts:
        port = host.rpartition(":")[2]
        if not HOST.fullmatch(host) or (":" in host and not 1 <= int(port) <= 65535):
            return f"{host[:100]!r} is no host[:port], such as api.example.com or *.example.com:443"
    return None
