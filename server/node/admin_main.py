"""The process of the admin listener."""

from __future__ import annotations

import sys

from server.base.lifeline import name_process
from server.node.gateway_main import read_listener, serve


def main() -> int:
    name_process("ichibase-admin")
    listener = read_listener()
    serve(
        "server.control.api:application", listener.admin_host, listener.admin_port, 1,
        listener.drain_seconds,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
