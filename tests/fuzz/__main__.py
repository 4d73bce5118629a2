"""python -m tests.fuzz [TARGET ...] [--seconds N] [--corpus DIR]

Runs each target (all by default) for N seconds, each in a process of its own. Needs atheris.
A failing input is printed and kept in the corpus folder; exit code 1 then.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = (
    "query",
    "shape",
    "json",
    "bodies",
    "headers",
    "settings",
    "body",
    "rules",
    "match",
    "answer",
    "frames",
    "message",
    "received",
)
MOST_BYTES = 400
SLOWEST = 5  # seconds for one input


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Never returns: the fuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["ichicore", "server", "tests.oracle"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (folder / f"seed-{number}").write_bytes(seed)
    flags = [
        f"-max_total_time={seconds}",
        f"-max_len={MOST_BYTES}",
        f"-timeout={SLOWEST}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *flags, str(folder)], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=[], help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=None)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    wrong = [name for name in options.targets if name not in NAMES]
    if wrong:
        parser.error(f"no such target: {', '.join(wrong)}")
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="ichibase-fuzz-"))
    if options.inside:
        fuzz(options.targets[0], options.seconds, corpus)
    failed = []
    for name in options.targets or NAMES:
        print(f"== {name}: {options.seconds} s, corpus {corpus / name}", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", name, "--inside"]
        command += ["--seconds", str(options.seconds), "--corpus", str(corpus)]
        if subprocess.run(command).returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
