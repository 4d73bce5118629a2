"""`ichibase storage`: ls, cp, rm, sign, buckets, rotate-secret, reconcile.

A remote file is named `bucket:path`, as in `ichibase storage cp logo.png public:pics/logo.png`.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from server.cli.client import CommandError
from server.cli.output import note, print_json, print_table
from server.storage.transfer import Storage, TransferError

REMOTE = re.compile(r"([a-z0-9][a-z0-9-]{1,62}):(.*)", re.DOTALL)


class Remote(NamedTuple):
    bucket: str
    path: str


class Job(NamedTuple):
    """One file to copy. target: a path of the bucket, or of this machine."""

    source: str
    target: str
    size: int


def register(commands: Any) -> None:
    """Adds the subcommands to the parser of the program."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", help="the node's data folder (ICHIBASE_DATA_DIR, ./data)")
    shared.add_argument("--json", action="store_true", help="JSON for machines")
    shared.add_argument("--project", default="default", help="the project (default)")
    made = commands.add_parser("storage", help="Copy, list, delete and sign a project's files.")
    actions = made.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Any, text: str) -> Any:
        one = actions.add_parser(name, parents=[shared], help=text, description=text)
        one.set_defaults(run=_told(run))
        return one

    one = action("ls", ls, "list files under a prefix, or all buckets")
    one.add_argument("place", nargs="?", metavar="BUCKET:[PREFIX]")
    one = action("cp", cp, "copy files up, down, or within a bucket's project")
    one.add_argument("source", metavar="FILE|BUCKET:PATH")
    one.add_argument("target", metavar="BUCKET:PATH|FILE")
    one.add_argument("-r", "--recursive", action="store_true", help="a folder with all below it")
    one.add_argument("--type", help="media type; guessed from the name when left out")
    one.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    one = action("rm", rm, "delete a file, or a folder")
    one.add_argument("place", metavar="BUCKET:PATH")
    one.add_argument("-r", "--recursive", action="store_true", help="a folder with all below it")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one = action("sign", sign, "print a URL that reads a file, or a folder")
    one.add_argument("place", metavar="BUCKET:PATH")
    one.add_argument("--seconds", type=int, help="how long it lasts (60)")
    one.add_argument("--folder", action="store_true", help="everything below the path too")
    one.add_argument("--user", help="the user it is for, as the token's subject")
    one = action("buckets", buckets, "show the buckets, or change the rules of one")
    one.add_argument("bucket", nargs="?")
    one.add_argument("--size-limit", help="largest file: bytes, or such as 20M; none for no limit")
    one.add_argument("--types", help="media types, such as image/*,application/pdf; any for all")
    one.add_argument(
        "--cache-seconds", help="how long others may keep public files; default for the project's"
    )
    one.add_argument("--delete", action="store_true", help="delete the bucket, which is empty")
    one = action("rotate-secret", rotate_secret, "sign the URLs with a new secret from now on")
    one.add_argument(
        "--overlap", type=int, metavar="SECONDS",
        help="how long URLs signed before still work (86400, as long as any lasts); 0 ends all now",
    )  # fmt: skip
    one = action("reconcile", check, "compare the database with the store")
    one.add_argument("--mend", action="store_true", help="put right what is found")
    one.add_argument("--force", action="store_true", help="even when much seems to be missing")


def _told(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def told(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except TransferError as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"{error.filename or 'the file'}: {error.strerror}") from None

    return told


def _storage(options: argparse.Namespace) -> Storage:
    from server.cli.main import client

    node = client(options)
    project = node.project(options.project)
    return Storage(*node.reach(project), project["service_key"])


def _admin(options: argparse.Namespace, method: str, rest: str = "", body: object = None) -> Any:
    from server.cli.main import client

    project = quote(options.project, safe="")
    path = f"/admin/v1/projects/{project}/storage{rest}"
    return client(options).call(method, path, body, seconds=3600)


def _remote(text: str) -> Remote | None:
    found = REMOTE.fullmatch(text)
    return None if found is None else Remote(found[1], found[2].removeprefix("/"))


def _place(text: str) -> Remote:
    found = _remote(text)
    if found is None:
        raise CommandError(f"{text!r} names no file: say BUCKET:PATH, such as public:pics/logo.png")
    return found


def size_text(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def ls(options: argparse.Namespace) -> int:
    if options.place is None:
        return buckets(argparse.Namespace(**{**vars(options), "bucket": None, "delete": False}))
    text = options.place if ":" in options.place else f"{options.place}:"
    place = _place(text)
    found = _storage(options).objects(place.bucket, place.path)
    if options.json:
        print_json(list(found))
        return 0
    rows = [[one["path"], size_text(one["size"]), one["content_type"], one["last_modified"]]
            for one in found]  # fmt: skip
    print_table(["path", "size", "type", "modified"], rows)
    return 0


def cp(options: argparse.Namespace) -> int:
    source, target = _remote(options.source), _remote(options.target)
    if (source is None) == (target is None):
        raise CommandError(
            "one of the two is BUCKET:PATH and the other a file of this machine (write ./name for "
            "a file whose name has a colon)"
        )
    storage = _storage(options)
    if target is not None:
        jobs = _up(Path(options.source), target, options.recursive)

        def copy(job: Job, told: Any) -> None:
            storage.put(Path(job.source), target.bucket, job.target, options.type, told)
    else:
        assert source is not None
        jobs = _down(storage, source, Path(options.target), options.recursive)

        def copy(job: Job, told: Any) -> None:
            Path(job.target).parent.mkdir(parents=True, exist_ok=True)
            storage.get(source.bucket, job.source, Path(job.target), told)

    done = _run(jobs, copy, quiet=options.quiet or options.json)
    if options.json:
        print_json({"files": done, "bytes": sum(job.size for job in jobs)})
    return 0


def _up(source: Path, target: Remote, recursive: bool) -> list[Job]:
    if not source.exists():
        raise CommandError(f"there is no file {source}")
    if source.is_dir():
        if not recursive:
            raise CommandError(f"{source} is a folder; copy it with -r")
        base = target.path.rstrip("/")
        jobs = []
        for path in sorted(source.rglob("*")):
            if path.is_file():
                name = path.relative_to(source).as_posix()
                jobs.append(Job(str(path), f"{base}/{name}" if base else name, path.stat().st_size))
        return jobs
    name = target.path
    if not name or name.endswith("/"):
        name += source.name
    return [Job(str(source), name, source.stat().st_size)]


def _down(storage: Storage, source: Remote, target: Path, recursive: bool) -> list[Job]:
    if not recursive:
        head = storage.call("head", {"bucket": source.bucket, "path": source.path})
        if not head["exists"]:
            raise CommandError(
                f"there is no file {source.bucket}:{source.path}; see: ichibase storage ls"
            )
        if target.is_dir():
            target = target / source.path.rpartition("/")[2]
        return [Job(source.path, str(target), head["size"])]
    base = source.path.rstrip("/")
    prefix = f"{base}/" if base else ""
    jobs = []
    root = target.resolve()
    for one in storage.objects(source.bucket, prefix):
        place = (target / one["path"][len(prefix) :]).resolve()
        if not place.is_relative_to(root):  # a link of this machine leads out of the folder
            raise CommandError(f"{one['path']} would be written outside {target}")
        jobs.append(Job(one["path"], str(place), one["size"]))
    if not jobs:
        raise CommandError(f"there are no files below {source.bucket}:{source.path}")
    return jobs


def _run(jobs: list[Job], copy: Callable[[Job, Any], None], *, quiet: bool) -> int:
    with _bar(sum(job.size for job in jobs), quiet or not sys.stderr.isatty()) as (told, shown):
        for job in jobs:
            shown(job.source)
            copy(job, told)
    if not quiet:
        total = size_text(sum(job.size for job in jobs))
        note(f"copied {len(jobs)} {'file' if len(jobs) == 1 else 'files'}, {total}")
    return len(jobs)


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """(tells bytes more, shows which file) of a progress bar on standard error."""
    if quiet:
        yield (lambda size: None), (lambda name: None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(),
        DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield (
            lambda size: progress.update(task, advance=size),
            lambda name: progress.update(task, description=name[-40:]),
        )


def rm(options: argparse.Namespace) -> int:
    place = _place(options.place)
    if options.recursive and not options.yes:
        if not sys.stdin.isatty():
            raise CommandError("this deletes everything below the path; say --yes")
        if input(f"Delete {options.place} and all below it? [y/N] ").lower() != "y":
            raise CommandError("nothing was deleted")
    body = {"bucket": place.bucket, "path": place.path}
    if options.recursive:
        body["recursive"] = True  # type: ignore[assignment]
    answer = _storage(options).call("delete", body)
    if options.json:
        print_json(answer)
    elif answer["deleted"]:
        count = answer.get("count", 1)
        what = "file" if count == 1 else "files"
        print(f"deleted {count} {what}, {size_text(answer['bytes_freed'])}")
    else:
        raise CommandError(f"there is no file {options.place}; see: ichibase storage ls")
    return 0


def sign(options: argparse.Namespace) -> int:
    place = _place(options.place)
    body: dict[str, Any] = {"bucket": place.bucket, "path": place.path}
    if options.folder:
        body["recursive"] = True
    if options.seconds is not None:
        body["ttl_seconds"] = options.seconds
    if options.user:
        body["user_id"] = options.user
    answer = _storage(options).call("get-url", body)
    print_json(answer) if options.json else print(answer["url"])
    return 0


def buckets(options: argparse.Namespace) -> int:
    if options.bucket is None:
        found = _admin(options, "GET")
        if options.json:
            print_json(found)
            return 0
        _print_buckets(found["buckets"])
        note(
            f"{size_text(found['bytes'])} of {size_text(found['quota'])} in {found['files']} files"
            f", {size_text(found['reserved'])} reserved"
        )
        return 0
    path = f"/buckets/{quote(options.bucket, safe='')}"
    if options.delete:
        _admin(options, "DELETE", path)
        print(f"deleted {options.bucket}")
        return 0
    changes: dict[str, Any] = {}
    if options.size_limit is not None:
        changes["size_limit"] = _size(options.size_limit)
    if options.types is not None:
        changes["allowed_types"] = None if options.types == "any" else options.types.split(",")
    if options.cache_seconds is not None:
        changes["cache_seconds"] = _seconds(options.cache_seconds)
    if changes:
        names = ("size_limit", "allowed_types", "cache_seconds")
        known = {b["name"]: b for b in _admin(options, "GET")["buckets"]}.get(options.bucket, {})
        found = _admin(options, "PUT", path, {name: known.get(name) for name in names} | changes)
    else:
        found = _admin(options, "GET", path)
    print_json(found) if options.json else _print_buckets([found])
    return 0


def _size(text: str) -> int | None:
    if text == "none":
        return None
    found = re.fullmatch(r"(\d+)([KMG]?)B?", text, re.IGNORECASE)
    if found is None:
        raise CommandError("--size-limit is a number of bytes, such as 500000, 20M or 2G, or none")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]


def _seconds(text: str) -> int | None:
    if text == "default":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise CommandError("--cache-seconds is a number of seconds, or default")
    return int(text)


def _print_buckets(found: list[dict[str, Any]]) -> None:
    rows = [
        [
            b["name"], "anyone" if b["public"] else "by token", b["files"], size_text(b["bytes"]),
            size_text(b["size_limit"]) if b["size_limit"] else "any",
            ", ".join(b["allowed_types"] or ["any"]),
            "by default" if b["cache_seconds"] is None else f"{b['cache_seconds']} s",
        ]
        for b in found
    ]  # fmt: skip
    print_table(["bucket", "read", "files", "bytes", "largest", "types", "cached"], rows)


def rotate_secret(options: argparse.Namespace) -> int:
    body = {} if options.overlap is None else {"overlap_seconds": options.overlap}
    found = _admin(options, "POST", "/rotate-secret", body)
    if options.json:
        print_json(found)
    elif options.overlap == 0:
        print("signs with a new secret; all URLs signed before have ended")
    else:
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["accepted_until"]))
        print(f"signs with a new secret; URLs signed before work until {until} at the latest")
    return 0


def check(options: argparse.Namespace) -> int:
    found = _admin(options, "POST", "/reconcile", {"mend": options.mend, "force": options.force})
    wrong = found["orphans"] or found["missing"] or found["counted"] != found["actual"]
    if options.json:
        print_json(found)
    else:
        waiting = f", {found['waiting']} waiting to be deleted" if found["waiting"] else ""
        print(f"{found['files']} files, {found['blobs']} blobs{waiting}")
        if found["orphans"]:
            print(f"{found['orphans']} blobs of no file, {size_text(found['orphan_bytes'])}")
        if found["missing"]:
            print(f"{found['missing']} files without content:")
            for one in found["missing_files"]:
                print(f"  {one['bucket']}:{one['path']} ({size_text(one['size'])})")
        if found["counted"] != found["actual"]:
            print(f"counted {found['counted']}, actual {found['actual']}")
        if found["note"]:
            note(found["note"])
        if found["mended"]:
            print("mended" if wrong else "all is well")
        else:
            print("run it with --mend to put this right" if wrong else "all is well")
    return 0 if found["mended"] or not wrong else 1
