"""An object store of the tests' own: a program in a folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class OwnServer:
    folder: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
