"""The embedded document server: SecantusDB, a program of its own, run through its command line.

Its package is never imported: it has another licence, and it would share our process. It listens
on loopback and asks for a login. Because it knows no login before the first one is made, that one
is made while the server asks for a client certificate that only this process has.

`python -m server.mongo.embedded FOLDER PORT PASSWORD_FILE` prepares the folder once and then
becomes the server.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from server.base import processor

PACKAGE = "secantus"
LOGIN = "ichibase"
READY_SECONDS = 60.0
LOG_LIMIT = 16 << 20  # bytes of mongo.log kept from one start to the next
CERTIFICATE_DAYS = 1
SWITCH_SECONDS = 0.0001
# Python runs this before the program. Its threads take turns with the interpreter; by default one
# turn may last as long as three small operations of another project, each of which needs several.
STARTUP = f"import sys\nsys.setswitchinterval({SWITCH_SECONDS})\n"


class EmbeddedMongoError(RuntimeError):
    """The embedded document server could not be made or started; the text says why."""


def installed() -> bool:
    """Whether the program is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def admin_url(port: int, password: str) -> str:
    return f"mongodb://{LOGIN}:{password}@127.0.0.1:{port}/?directConnection=true&authSource=admin"


def address(port: int) -> str:
    return f"mongodb://127.0.0.1:{port}/?directConnection=true"


def command(folder: Path, port: int, *more: str) -> list[str]:
    """Its own configuration file, so that none lying about is read."""
    configuration = folder / "secantusd.toml"
    configuration.touch()
    return [
        sys.executable, "-m", PACKAGE, "--config", str(configuration), "--host", "127.0.0.1",
        "--port", str(port), "--storage-path", str(folder / "data"), "--log-level", "WARNING",
        *more,
    ]  # fmt: skip


def prepare(folder: Path, port: int, password: str, log: Any) -> None:
    """Makes the administrator's login, unless an earlier start has."""
    mark = folder / "login"
    if mark.exists():
        return
    if not installed():
        raise EmbeddedMongoError("the package SecantusDB is not installed")
    (folder / "data").mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="start-") as made:
        authority, server, client = _certificates(Path(made))
        process = subprocess.Popen(
            command(
                folder, port, "--tls-cert-file", server, "--tls-key-file", server,
                "--tls-ca-file", authority, "--tls-require-client-cert",
            ),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
        try:
            _make_login(process, port, password, authority, client)
        finally:
            process.kill()  # what was written is in its journal
            process.wait()
    partial = folder / "login.new"
    partial.write_text(f"{LOGIN}\n")
    partial.replace(mark)


def _make_login(
    process: subprocess.Popen[bytes], port: int, password: str, authority: str, client: str
) -> None:
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
                return
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


def _write_startup(folder: Path) -> None:
    """Has the program that follows begin with STARTUP."""
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "sitecustomize.py").write_text(STARTUP)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep + before if before else ''}"


def main(arguments: list[str]) -> int:
    folder, port = Path(arguments[0]), int(arguments[1])
    password = Path(arguments[2]).read_text().strip()
    path = folder / "mongo.log"
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_name("mongo.log.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        prepare(folder, port, password, descriptor)
    except EmbeddedMongoError as error:
        print(f"documents: {error}", file=sys.stderr, flush=True)
        return 1
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    _write_startup(folder / "startup")
    # The operations of many projects are its threads, which wait for each other; others may
    # interrupt them all, and they those whose turns are the longest.
    processor.turns(0, os.SCHED_OTHER, processor.MIDDLE)
    server = command(folder, port, "--auth", "--cache-size", "256M")
    os.execv(server[0], server)  # noqa: S606 - the signal of our parent's death stays in force


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
