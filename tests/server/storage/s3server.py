"""A SeaweedFS of our own: an object store that speaks S3 and checks signatures."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import obstore
from obstore.store import S3Store

from tests.ports import free_port
from tests.server.storage.ownserver import OwnServer

ACCESS, SECRET, BUCKET = "tests-access", "tests-secret-key", "files"
# The ports for gRPC follow the others by 10,000 unless they are told, and are then often taken.
PORTS = ("master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc", "s3", "s3_grpc")


class S3Server(OwnServer):
    """folder: where it keeps everything, for instance a small file system."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="ichi-s3-"))
        weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
        config = self.folder / "identities.json"
        config.write_text(json.dumps({"identities": [{
            "name": "tests", "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]}))  # fmt: skip
        port = {name: free_port() for name in PORTS}
        self.url = f"http://127.0.0.1:{port['s3']}"
        command = [weed, "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-s3", "-filer",
                   f"-s3.config={config}", "-volume.max=8", "-master.volumeSizeLimitMB=64",
                   "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"]  # fmt: skip
        for name, number in port.items():
            server, _, grpc = name.partition("_")
            command.append(f"-{server}.port{'.grpc' if grpc else ''}={number}")
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError((self.folder / "log").read_text()[-2000:])
            try:
                urllib.request.urlopen(self.url, timeout=2)
            except urllib.error.HTTPError:
                try:
                    obstore.put(self.store(), "ready", b"1")  # makes the bucket
                    return
                except Exception:
                    time.sleep(0.2)
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the object store did not start")

    def store(self) -> S3Store:
        return S3Store(
            BUCKET, endpoint=self.url, access_key_id=ACCESS, secret_access_key=SECRET,
            region="us-east-1", client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )  # fmt: skip

    def unfinished(self) -> list[str]:
        """Uploads in parts that were neither completed nor given up: nothing else shows them."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        host, empty = self.url.removeprefix("http://"), hashlib.sha256(b"").hexdigest()
        named = f"host:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{stamp}\n"
        signed = "host;x-amz-content-sha256;x-amz-date"
        asked = f"GET\n/{BUCKET}\nuploads=\n{named}\n{signed}\n{empty}"
        scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
        digest = hashlib.sha256(asked.encode()).hexdigest()
        key = f"AWS4{SECRET}".encode()
        for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"):
            key = hmac.digest(key, part.encode(), "sha256")
        request = urllib.request.Request(f"{self.url}/{BUCKET}?uploads=", headers={
            "x-amz-date": stamp, "x-amz-content-sha256": empty, "authorization":
            f"AWS4-HMAC-SHA256 Credential={ACCESS}/{scope}, SignedHeaders={signed}, "
            f"Signature={key.hex()}",
        })  # fmt: skip
        with urllib.request.urlopen(request, timeout=30) as answer:
            return re.findall("<Key>(.*?)</Key>", answer.read().decode())

    def environment(self, prefix: str = "ichibase") -> dict[str, str]:
        """What a node needs to keep its files here."""
        return {
            "ICHIBASE_STORAGE_URL": f"s3://{BUCKET}/{prefix}", "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
        }  # fmt: skip
