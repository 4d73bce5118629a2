"""An Azurite of our own: Microsoft's emulator of Azure Blob Storage, which checks signatures.

ICHIBASE_TEST_AZURITE names its program when it is not on the path: after `npm install azurite` it
is node_modules/.bin/azurite-blob.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from email.utils import formatdate
from pathlib import Path

from tests.ports import free_port
from tests.server.storage.ownserver import OwnServer

ACCOUNT, CONTAINER = "tests", "files"
KEY = base64.b64encode(hashlib.sha512(b"the account key of the tests").digest()).decode()
VERSION = "2021-08-06"


class AzureServer(OwnServer):
    def __init__(self) -> None:
        program = os.environ.get("ICHIBASE_TEST_AZURITE") or shutil.which("azurite-blob")
        assert program, (
            "azurite is missing: npm install azurite, and name it: ICHIBASE_TEST_AZURITE"
        )
        self.folder = Path(tempfile.mkdtemp(prefix="ichi-azure-"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/{ACCOUNT}"
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location",
                 str(self.folder), "--silent", "--disableTelemetry"],
                stdout=log, stderr=log, cwd=self.folder,
                env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._made():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.1)

    def _made(self) -> bool:
        """Makes the container; False while nobody answers."""
        now = formatdate(usegmt=True)
        text = (
            f"PUT{chr(10) * 12}x-ms-date:{now}\nx-ms-version:{VERSION}\n"
            f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
        )
        mark = hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")
        request = urllib.request.Request(
            f"{self.url}/{CONTAINER}?restype=container", method="PUT",
            headers={
                "x-ms-date": now, "x-ms-version": VERSION, "content-length": "0",
                "authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(mark).decode()}",
            },
        )  # fmt: skip
        try:
            urllib.request.urlopen(request, timeout=5)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()[:500]) from None
        except OSError:
            return False
        return True

    def environment(self, prefix: str = "ichibase") -> dict[str, str]:
        """What a node needs to keep its files here."""
        return {
            "ICHIBASE_STORAGE_URL": f"az://{CONTAINER}/{prefix}",
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.url,
        }  # fmt: skip
