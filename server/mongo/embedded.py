"""The embedded document server: SecantusDB, a program of its own, run through its command line.

Its package is never imported: it has another licence, and it would share our process. It listens
on loopback and asks for a login. Because it knows no login before the first one is made, that one
is made while the server asks for a client certificate that only this process has.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from server.base.lifeline import die_with_parent
from server.base.ports import free_port
from server.mongo.folders import shrink

PACKAGE, DISTRIBUTION = "secantus", "secantusdb"
LOGIN = "ichibase"
READY_SECONDS = 60.0
STOP_SECONDS = 10.0
CERTIFICATE_DAYS = 1
VERSION_FILE = "version"  # in a prepared folder: of the program that made it
HELLO_FILE = "hello.bson"  # what that said of itself


class EmbeddedMongoError(RuntimeError):
    """The embedded document server could not be made or started; the text says why."""


def installed() -> bool:
    """Whether the program is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def admin_url(port: int, password: str) -> str:
    login = f"{LOGIN}:{quote(password, safe='')}"
    return f"mongodb://{login}@127.0.0.1:{port}/?directConnection=true&authSource=admin"


def address(port: int) -> str:
    return f"mongodb://127.0.0.1:{port}/?directConnection=true"


def arguments(folder: Path, port: int, *more: str, cache: str = "") -> list[str]:
    """What the program is told. cache: as it takes it, for a server that asks for logins; none for
    the first start, which makes the first login."""
    configuration = folder / "secantusd.toml"
    configuration.touch()  # its own, so that none lying about is read
    if cache:
        more = ("--auth", "--cache-size", cache, *more)
    return [
        "--config", str(configuration), "--host", "127.0.0.1", "--port", str(port),
        "--storage-path", str(folder / "data"), "--log-level", "WARNING", *more,
    ]  # fmt: skip


def prepare(folder: Path, password: str, log: Any) -> None:
    """Makes a folder with the administrator's login, whole or not at all, unless this version of
    the program has made it before. EmbeddedMongoError."""
    version = importlib.metadata.version(DISTRIBUTION) if installed() else ""
    mark = folder / VERSION_FILE
    if mark.exists() and (not version or mark.read_text() == version):
        return
    if not version:
        raise EmbeddedMongoError("the package SecantusDB is not installed")
    partial = folder.with_name(f"{folder.name}.new")
    for rest in (partial, folder):
        shutil.rmtree(rest, ignore_errors=True)
    (partial / "data").mkdir(mode=0o700, parents=True)
    port = free_port()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="start-") as made:
        authority, server, client = _certificates(Path(made))
        tls = ("--tls-cert-file", server, "--tls-key-file", server,
               "--tls-ca-file", authority, "--tls-require-client-cert")  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", PACKAGE, *arguments(partial, port, *tls)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=partial,
            preexec_fn=die_with_parent(),
        )  # fmt: skip
        try:
            hello = _make_login(process, port, password, authority, client)
            process.terminate()
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise EmbeddedMongoError("the document server does not end; see mongo.log") from None
        finally:
            process.kill()
            process.wait()
    (partial / HELLO_FILE).write_bytes(hello)
    (partial / VERSION_FILE).write_text(version)
    shrink(partial)
    partial.rename(folder)


def _make_login(
    process: subprocess.Popen[bytes], port: int, password: str, authority: str, client: str
) -> bytes:
    """What the server says of itself to a driver, as BSON."""
    import bson
    from pymongo import MongoClient, WriteConcern
    from pymongo.errors import OperationFailure, PyMongoError

    deadline = time.monotonic() + READY_SECONDS
    while True:
        if process.poll() is not None:
            raise EmbeddedMongoError("the document server ended while starting; see mongo.log")
        one: MongoClient[dict[str, Any]] = MongoClient(
            "127.0.0.1", port, directConnection=True, tls=True, tlsCAFile=authority,
            tlsCertificateKeyFile=client, serverSelectionTimeoutMS=1000,
        )  # fmt: skip
        try:
            with one:
                roles = ["root"]
                try:
                    one.admin.command("createUser", LOGIN, pwd=password, roles=roles)
                except OperationFailure as error:
                    if error.code != 51003:  # it is there from a start that was interrupted
                        raise
                    one.admin.command("updateUser", LOGIN, pwd=password, roles=roles)
                # Making a login does not wait for the journal, a write that asks for it does.
                journaled = WriteConcern(w=1, j=True)
                kept = one.admin.get_collection("ichibase", write_concern=journaled)
                kept.replace_one({"_id": "login"}, {"at": time.time()}, upsert=True)
                return bson.encode(one.admin.command("hello"))
        except OperationFailure as error:
            raise EmbeddedMongoError(f"the first login could not be made: {error}") from None
        except PyMongoError as error:
            if time.monotonic() > deadline:
                raise EmbeddedMongoError(f"the document server does not answer: {error}") from None
            time.sleep(0.05)


def _certificates(folder: Path) -> tuple[str, str, str]:
    """Files of an authority of our own and of two certificates it signed, each with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)

    def make(name: str, issuer: tuple[Any, Any] | None) -> tuple[Any, Any]:
        import ipaddress

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[1].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=CERTIFICATE_DAYS))
            .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    (issuer[0] if issuer else key).public_key()
                ),
                False,
            )
            .sign(issuer[0] if issuer else key, hashes.SHA256())
        )
        return key, certificate

    def write(name: str, key: Any, certificate: Any) -> str:
        path = folder / f"{name}.pem"
        text = certificate.public_bytes(serialization.Encoding.PEM)
        if key is not None:
            text += key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        return str(path)

    authority = make("ichibase first start", None)
    files = [write("authority", None, authority[1])]
    files += [write(name, *make(name, authority)) for name in ("server", "client")]
    return files[0], files[1], files[2]
