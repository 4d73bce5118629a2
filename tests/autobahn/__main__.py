"""The Autobahn suite against the realtime port.

    python -m tests.autobahn [--wstest "wstest"] [--cases 1.* 2.*] [--keep FOLDER]

The server is the realtime process as it runs in a node: its listener, its handshake with a token,
its sockets. Only what it does with a message is replaced, by sending it back, as the suite asks of
a server, and its limits (64 KiB a message, 500 frames a second) are lifted, because cases 9.* send
16 MiB. Exit code 0 when every case is answered as the suite wants it.

The suite is a program of its own, for Python 2.7: `pip install autobahntestsuite` there, or its
container with `--wstest "docker run --rm --network host -v {folder}:{folder} \
crossbario/autobahn-testsuite wstest"`. Cases 12 and 13 are about compression, which is not offered.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from ichicore.live.wire import Wire, encode
from server.realtime.process import Process
from tests.server.realtime.world import SECRET, World, key, project

PASSED = {"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"}
COMPRESSION = ("12.", "13.")


def echoing(process: Process) -> None:
    """Makes it send messages back, without limits."""
    process._loop.remove_reader(process.wire.fileno())
    process.wire = Wire(process, max_message=64 << 20, max_buffer=128 << 20, max_frames=1 << 30)
    process._loop.add_reader(process.wire.fileno(), process._ready)
    process.wire.sweep(int(process.now()), 0.0)
    process.message = lambda peer, data, text: peer.send(encode(data, 1 if text else 2))


def run(command: str, folder: Path, cases: list[str]) -> dict[str, dict[str, str]]:
    """The suite's verdict for each case."""
    world = World(project(SECRET, {}))
    try:
        world.call(lambda: echoing(world.process))
        spec = {
            "outdir": str(folder), "cases": cases, "exclude-cases": [], "exclude-agent-cases": {},
            "servers": [{
                "agent": "ichibase", "options": {"version": 18},
                "url": f"ws://127.0.0.1:{world.port}/realtime?token={key()}",
            }],
        }  # fmt: skip
        path = folder / "spec.json"
        path.write_text(json.dumps(spec))
        program = shlex.split(command.replace("{folder}", str(folder)))
        with open(folder / "log", "wb") as log:
            subprocess.run(
                [*program, "-m", "fuzzingclient", "-s", str(path)],
                check=True, stdout=log, stderr=log,
            )  # fmt: skip
    finally:
        world.end()
    found: dict[str, dict[str, str]] = json.loads((folder / "index.json").read_text())["ichibase"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wstest", default="wstest", help="the suite's program")
    parser.add_argument("--cases", nargs="*", default=["*"])
    parser.add_argument("--keep", type=Path, help="where the suite's report is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ichi-autobahn-") as made:
        folder = options.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        found = run(options.wstest, folder.resolve(), options.cases)
    behaviours = Counter(case["behavior"] for case in found.values())
    closes = Counter(case["behaviorClose"] for case in found.values())
    print(f"{len(found)} cases:", dict(behaviours), "closing:", dict(closes))
    failed = [
        name
        for name, case in found.items()
        if case["behavior"] not in PASSED
        or case["behaviorClose"] not in PASSED
        or (case["behavior"] == "UNIMPLEMENTED" and not name.startswith(COMPRESSION))
    ]
    for name in sorted(failed):
        print(name, found[name])
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
