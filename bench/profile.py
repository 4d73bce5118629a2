"""Where the time of a worker goes: a flame graph, written to a file, of reads by primary key.

Needs py-spy (`pip install py-spy`) and the right to trace (root, or ptrace_scope 0).
"""

from __future__ import annotations

import argparse
import subprocess
import threading
import time

from bench.bench_http import READ_BY_KEY, SCHEMA, Node
from bench.loads import LoadError, wrk


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", default="profile.svg")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--native", action="store_true", help="C frames too")
    options = parser.parse_args()
    node = Node()
    try:
        node.sql(SCHEMA)
        headers = {"authorization": f"Bearer {node.token()}"}
        load = threading.Thread(
            target=lambda: wrk(
                node.url,
                seconds=options.seconds + 2,
                connections=8,
                headers=headers,
                lua=READ_BY_KEY,
            )
        )
        load.start()
        time.sleep(1)
        command = ["py-spy", "record", "-p", str(node.workers()[0]), "-d", str(options.seconds)]
        command += ["-r", "500", "-o", options.output, *(["--native"] if options.native else [])]
        try:
            subprocess.run(command, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise LoadError(f"py-spy did not record: {error}") from None
        load.join()
    finally:
        node.stop()
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
