"""A registry of modules as Deno asks one: npm packages, JSR packages and plain modules by HTTPS.

What it does not have of npm is asked for elsewhere: the bundler comes from the usual registry.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.server
import io
import ipaddress
import json
import os
import shutil
import ssl
import subprocess
import tarfile
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def usual():
    """The npm registry that this machine uses, without a slash at its end."""
    named = os.environ.get("NPM_CONFIG_REGISTRY")
    if named is None:
        if shutil.which("npm") is None:
            pytest.skip("npm is missing: apt-get install npm")
        done = subprocess.run(
            ["npm", "config", "get", "registry"], capture_output=True, text=True, check=True
        )
        named = done.stdout.strip()
    return named.rstrip("/")


def certify(folder):
    """(certificate of an authority, certificate with key for localhost), as files in a folder."""
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)

    def name(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def made(subject, key, issuer, signer, *extensions):
        builder = (
            x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - day).not_valid_after(now + day)
        )  # fmt: skip
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    (folder / "ca.pem").write_bytes(
        made("tests", authority, "tests", authority, (x509.BasicConstraints(True, 0), True))
    )
    secret = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    found = made("localhost", own, "tests", authority, (x509.SubjectAlternativeName(names), False))
    (folder / "own.pem").write_bytes(found + secret)
    return folder / "ca.pem", folder / "own.pem"


def tarball(files):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for path, content in files.items():
            told = tarfile.TarInfo(f"package/{path}")
            told.size = len(content)
            archive.addfile(told, io.BytesIO(content))
    return raw.getvalue()


class Registry:
    """asked: the paths that were asked for."""

    def __init__(self, folder, elsewhere):
        self.authority, own = certify(folder)
        self.elsewhere = elsewhere
        self.asked = []
        self.files = {}
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                registry.asked.append(self.path)
                found = registry.files.get(self.path)
                if found is not None:
                    self.send_response(200)
                    self.send_header("content-length", str(len(found)))
                    self.end_headers()
                    self.wfile.write(found)
                    return
                passed = self.path.startswith("/npm/@esbuild")
                self.send_response(302 if passed else 404)
                if passed:
                    self.send_header("location", registry.elsewhere + self.path[4:])
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.host = f"localhost:{self.server.server_address[1]}"
        self.url = f"https://{self.host}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def environment(self):
        """What sends Deno here."""
        return {"NPM_CONFIG_REGISTRY": f"{self.url}/npm/", "JSR_URL": f"{self.url}/",
                "DENO_CERT": str(self.authority)}  # fmt: skip

    def npm(self, name, version, files, **more):
        """Publishes a package. files: path to bytes."""
        about = json.dumps({"name": name, "version": version, **more}).encode()
        raw = tarball({"package.json": about, **files})
        path = f"/npm/{name}/-/{name}-{version}.tgz"
        digest = base64.b64encode(hashlib.sha512(raw).digest()).decode()
        dist = {"tarball": self.url + path, "integrity": f"sha512-{digest}",
                "shasum": hashlib.sha1(raw).hexdigest()}  # fmt: skip
        told = json.loads(self.files.get(f"/npm/{name}", b'{"versions": {}}'))
        told |= {"name": name, "dist-tags": {"latest": version}}
        told["versions"][version] = {"name": name, "version": version, "dist": dist, **more}
        self.files[f"/npm/{name}"] = json.dumps(told).encode()
        self.files[path] = raw

    def jsr(self, name, version, text):
        """Publishes a package of one module."""
        raw = text.encode()
        base = f"/{name}"
        told = json.loads(self.files.get(f"{base}/meta.json", b'{"versions": {}}'))
        scope, _, bare = name[1:].partition("/")
        told |= {"scope": scope, "name": bare, "latest": version}
        told["versions"][version] = {}
        self.files[f"{base}/meta.json"] = json.dumps(told).encode()
        digest = hashlib.sha256(raw).hexdigest()
        self.files[f"{base}/{version}_meta.json"] = json.dumps({
            "manifest": {"/mod.ts": {"size": len(raw), "checksum": f"sha256-{digest}"}},
            "exports": {".": "./mod.ts"},
        }).encode()  # fmt: skip
        self.files[f"{base}/{version}/mod.ts"] = raw

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
