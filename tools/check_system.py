"""Says in one line which system packages the build lacks, and the command that installs them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig


def missing() -> list[str]:
    packages = []
    if not (shutil.which("gcc") or shutil.which("cc")):
        packages.append("gcc")
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        packages.append("python3-dev")
    if importlib.util.find_spec("ensurepip") is None:
        packages.append("python3-venv")
    if not has_libpq():
        packages.append("libpq-dev")
    return packages


def has_libpq() -> bool:
    try:
        found = subprocess.run(["pg_config", "--includedir"], capture_output=True, text=True)
    except FileNotFoundError:
        return False
    return os.path.exists(os.path.join(found.stdout.strip(), "libpq-fe.h"))


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036
        print(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    packages = missing()
    if packages:
        become = "" if os.geteuid() == 0 else "sudo "
        names = " ".join(packages)
        print(f"missing system packages: {become}apt-get install -y {names}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
