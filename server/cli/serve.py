"""`ichibase serve`: runs a node in the foreground."""

from __future__ import annotations

import argparse
import sys

from server.cli.client import CommandError
from server.cli.output import note
from server.node.settings import SettingsError, load

FLAGS = ("data_dir", "host", "port", "workers", "admin_port", "public_url", "base_domain",
         "database_url")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    try:
        settings = load({name: getattr(options, name) for name in FLAGS})
    except SettingsError as error:
        raise CommandError(str(error)) from None
    from ichicore.errors import ApiError
    from server.base.ports import PortTakenError
    from server.control.database import ControlError
    from server.node.children import ChildError
    from server.node.embedded_pg import EmbeddedPostgresError
    from server.node.files import InUseError
    from server.node.supervisor import Node, Stop

    node = Node(settings)
    try:
        config = node.start()
        welcome(node, config.public_url)
        node.run()
    except (InUseError, ChildError, ControlError, EmbeddedPostgresError, PortTakenError,
            ApiError, OSError) as error:  # fmt: skip
        node.stop()
        raise CommandError(str(error)) from None
    except Stop:
        pass
    note("stopping: finishing open requests")
    node.stop()
    return 0


def welcome(node: object, url: str) -> None:
    from server.node.supervisor import Node

    assert isinstance(node, Node)
    data_dir = node.settings.data_dir
    lines = [
        f"ichibase is running at {url}",
        "",
        f"  anon key     {node.anon_key}",
        f"  service key  in {node.data.service_key_file}",
        f"  admin API    {node.settings.admin_address()}/admin/v1, token in "
        f"{node.data.admin_token_file}",
    ]
    if node.first_start:
        module = sys.argv[0].endswith(".py")  # run as `python -m`
        program = f"{sys.executable} -m server.cli.main" if module else sys.argv[0]
        sql = (
            "create table todos (id int generated always as identity primary key, title text); "
            "insert into todos (title) values ('hello')"
        )
        lines += [
            "",
            "make a table:",
            f'  {program} sql default --data-dir {data_dir} -c "{sql}"',
            "read it:",
            f"  curl {url}/postgres/todos -H 'Authorization: Bearer {node.anon_key}'",
        ]
    print("\n".join(lines), flush=True)
