"""All benchmarks one after the other: `make bench` (ARGS="--json" for machines)."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object of all results")
    parser.add_argument("only", nargs="*", help="names, such as query or http")
    options = parser.parse_args()
    names = sorted(path.stem for path in HERE.glob("bench_*.py"))
    wanted = [n for n in names if not options.only or n.removeprefix("bench_") in options.only]
    results: dict[str, object] = {"load_before": os.getloadavg()[0]}
    failed = 0
    for number, name in enumerate(wanted, 1):
        print(f"[{number}/{len(wanted)}] {name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"bench.{name}", *(["--json"] if options.json else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE if options.json else None, text=True)
        failed += done.returncode != 0
        if options.json and done.returncode == 0:
            results[name] = json.loads(done.stdout)
    if options.json:
        print(json.dumps(results, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
