"""python tools/debug_test.py [--address] [PYTEST ARGUMENT ...]

Runs tests against a core that is built with bounds checks and assertions, in a copy of the tree in
.build, so that the built modules of the tree stay as they are. --address: with AddressSanitizer
instead, which also sees what C code reads and writes out of bounds or after it was freed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"build", "data", "dist", "node_modules", "__pycache__"}
TESTS = [
    "tests/core", "tests/memory", "tests/server/test_pool.py",
    "tests/server/test_rows_on_server.py", "tests/wire/test_rest_engine.py",
]  # fmt: skip
# Tests of how quick or how small something is, which it is not under the sanitizer.
MEASURED = [
    "--ignore=tests/memory",
    "--deselect=tests/wire/test_rest_engine.py::test_a_function_that_is_quick_may_share_a_connection",
]
SANITIZER = "-fsanitize=address -fno-omit-frame-pointer"


def copy(target: Path) -> None:
    """What has changed since the last time, but nothing that was built."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if parts[0].startswith(".") or LEFT_OUT.intersection(parts) or path.suffix == ".so":
            continue
        there = target / Path(*parts)
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".c" and path.with_suffix(".pyx").exists():
            continue
        elif not there.exists() or there.stat().st_mtime < path.stat().st_mtime:
            shutil.copy2(path, there)


def library(name: str) -> str:
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def main() -> int:
    arguments = sys.argv[1:]
    address = "--address" in arguments
    arguments = [one for one in arguments if one != "--address"]
    target = ROOT / ".build" / ("address-tree" if address else "debug-tree")
    target.mkdir(parents=True, exist_ok=True)
    copy(target)
    environment = {**os.environ, "ICHIBASE_DEBUG": "1"}
    built = dict(environment)
    if address:
        built |= {"CFLAGS": f"{SANITIZER} -O1", "LDFLAGS": SANITIZER}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if code := subprocess.run(build, cwd=target, env=built).returncode:
        return code
    if address:
        environment |= {
            "LD_PRELOAD": library("libasan.so"), "PYTHONMALLOC": "malloc",
            # the interpreter frees little at its end, and what a test starts is not built so
            "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:abort_on_error=1",
        }  # fmt: skip
    command = [sys.executable, "-m", "pytest", *(arguments or TESTS)]
    if address:
        command += MEASURED
    return subprocess.run(command, cwd=target, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
