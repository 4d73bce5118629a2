"""Where a node keeps documents, and how a project's login gets there.

A project's row keeps `mongodb://<login>:<password>@documents/<database>`; the host is put in when
it is read, so that a server may move without a change of any row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import msgspec

ANYWHERE = "documents"  # stands for the node's server in a stored address
FILE = "documents.json"
# What the address of a server may say about the administrator alone.
OWN_OPTIONS = frozenset({"authsource", "authmechanism", "authmechanismproperties", "appname"})


class AddressError(ValueError):
    """The address of a document server cannot be used; the text says why."""


class DocumentServer(msgspec.Struct, frozen=True, kw_only=True):
    """The node's document server, or the embedded ones behind one address. admin_url: login that
    may create users; the embedded ones take it on their own ports alone. address: without
    credentials, for the projects' logins. node_pid: process that starts the manager of the
    embedded ones on SIGUSR1 once its folder is there, None when it is not ours to start. desk: the
    manager's socket, see server.mongo.lease."""

    kind: Literal["embedded", "external"]
    admin_url: str
    address: str
    node_pid: int | None = None
    folder: str | None = None
    desk: str | None = None
    port: int = 0

    def at(self, port: int) -> DocumentServer:
        """One of the embedded servers, on the port where it listens."""
        parts = urlsplit(self.admin_url)
        there = parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}")
        return msgspec.structs.replace(self, admin_url=urlunsplit(there), port=port)


def without_login(url: str) -> str:
    """The address that a URL names, with its options but without credentials and database.
    AddressError for what is no MongoDB URL."""
    if not url.startswith(("mongodb://", "mongodb+srv://")):
        raise AddressError("the URL of a MongoDB begins with mongodb:// or mongodb+srv://")
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    if not hosts:
        raise AddressError("the MongoDB URL names no host")
    options = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if name.lower() not in OWN_OPTIONS
    ]
    query = f"?{urlencode(options)}" if options else ""
    return f"{parts.scheme}://{hosts}/{query}"


def stored(login: str, password: str, database: str) -> str:
    """What is kept in a project's row."""
    return f"mongodb://{quote(login, safe='')}:{quote(password, safe='')}@{ANYWHERE}/{database}"


def of_project(kept: str | None, address: str | None) -> str | None:
    """The URL of a project's own login at the node's server. None when there is no server, or the
    project has no documents."""
    if kept is None or address is None:
        return None
    own, there = urlsplit(kept), urlsplit(address)
    if own.hostname != ANYWHERE:
        return kept  # a server of its own
    database = own.path.lstrip("/")
    login = own.netloc.rpartition("@")[0]
    query = f"{there.query}&" if there.query else ""
    return f"{there.scheme}://{login}@{there.netloc}/{database}?{query}authSource={database}"


def written(server: DocumentServer) -> str:
    """The text that read_server understands."""
    return msgspec.json.encode(server).decode()


def read_server(data_dir: Path) -> DocumentServer | None:
    """What the node wrote about its document server; None when it has none."""
    try:
        return msgspec.json.decode((data_dir / "run" / FILE).read_bytes(), type=DocumentServer)
    except FileNotFoundError:
        return None
