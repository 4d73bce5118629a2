"""The command line's side of the admin REST API."""

from __future__ import annotations

import fcntl
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

START_WAIT = 3.0  # seconds that a listener which starts is waited for
ANSWER_WAIT = 5.0  # seconds until a node that says nothing is taken to hang
# Opens a request to the node: not by a proxy of the environment, which would see the key.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
# What to do next, by the code of a refusal.
NEXT = {
    "project_not_found": "ichibase projects list --deleted",
    "project_exists": "choose another name, or see: ichibase projects list --deleted",
    "project_limit": "ichibase owners put OWNER --bound NUMBER",
    "flavor_not_allowed": "another --tier, or --flavor postgres or mongo",
    "owner_not_found": "ichibase owners list",
    "owner_suspended": "ichibase owners put OWNER --suspended no",
    "owner_has_projects": "ichibase projects change PROJECT --owner NAME, or delete them",
    "invalid_limits": "ichibase tiers shows the names and what is usual",
    "invalid_tier": "ichibase tiers",
    "wrong_state": "ichibase projects list --deleted shows the states",
    "backup_not_found": "ichibase backups list, or after a loss: ichibase backups scan",
    "function_not_found": "ichibase functions list",
    "version_not_found": "ichibase functions versions NAME",
    "secret_not_found": "ichibase functions secrets list",
    "invalid_secret": "ichibase functions secrets set NAME=VALUE",
    "function_load_failed": "ichibase functions logs NAME",
    "revision_not_found": "ichibase rules history",
    "collection_not_found": "ichibase mongo collections",
    "key_not_found": "ichibase keys list",
    "mongo_not_enabled": "ichibase mongo enable",
    "mongo_not_available": "ichibase projects create NAME --flavor postgres",
}


class CommandError(Exception):
    """What a command could not do, and the one next step. place: (line, column) in the SQL that
    was sent, where the server named one."""

    place: tuple[int, int] | None = None


class AdminClient:
    """Finds the running node of a data folder and talks to it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        try:
            listener = json.loads((data_dir / "run" / "node.json").read_text())
            self.token = (data_dir / "secrets" / "admin_token").read_text().strip()
            running = _held(data_dir / "run" / "lock")
        except FileNotFoundError:
            running = False
        except PermissionError:
            raise CommandError(
                f"{data_dir} belongs to another user; run this command as that user"
            ) from None
        if not running:
            raise CommandError(
                f"no node runs on {data_dir}; start one with: ichibase serve --data-dir {data_dir}"
            )
        self.config: dict[str, Any] = listener["config"]
        self.url: str = self.config["admin_url"]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener["host"], listener["host"])  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        self.data_plane = f"http://{host}:{listener['port']}"
        self._awake: set[str] = set()

    def call(self, method: str, path: str, body: object = None, seconds: float = 120) -> Any:
        """The decoded answer within `seconds`; CommandError with the server's own words
        otherwise."""
        self.wake(self.url)
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310
            self.url + path,
            data=data,
            method=method,
            headers={"authorization": f"Bearer {self.token}", "content-type": "application/json"},
        )
        try:
            with direct(request, timeout=seconds) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise _told(error.read(), error.code) from None
        except TimeoutError:
            raise CommandError(f"the node did not answer within {seconds:.0f} s") from None
        except (urllib.error.URLError, OSError):
            raise self._silent(self.url) from None

    def wake(self, base: str) -> None:
        """Makes sure, once, that a listener of the node answers: the work itself may take minutes.
        One that is not there yet is given START_WAIT seconds, since the node starts its listeners
        side by side."""
        if base in self._awake:
            return
        until = time.monotonic() + START_WAIT
        while True:
            try:
                direct(f"{base}/healthz", timeout=ANSWER_WAIT).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, TimeoutError):
                    raise CommandError(
                        f"the node of {self.data_dir} hangs: it does not answer at {base} within "
                        f"{ANSWER_WAIT:.0f} s; see its log, then stop it and start it again"
                    ) from None
                if not isinstance(reason, ConnectionRefusedError) or time.monotonic() > until:
                    raise self._silent(base) from None
                time.sleep(0.1)
        self._awake.add(base)

    def _silent(self, base: str) -> CommandError:
        return CommandError(
            f"the node of {self.data_dir} does not answer at {base}; if it is not running, "
            f"start it with: ichibase serve --data-dir {self.data_dir}"
        )

    def reach(self, project: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """(base address, headers) of a project's own requests: by this machine, as its name may
        be known elsewhere alone."""
        self.wake(self.data_plane)
        return self.data_plane, {"host": urlsplit(project["url"]).netloc}

    def project(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/admin/v1/projects/{quote(name, safe='')}")
        return found


def reason(error: OSError | UnicodeDecodeError) -> str:
    """Why a file could not be read, for people."""
    return "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error.strerror)


def _held(lock: Path) -> bool:
    """Whether a node holds the lock of its data folder, which ends with its process."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _told(body: bytes, status: int) -> CommandError:
    try:
        error = json.loads(body)
        told = CommandError(f"{error['detail']} [{error['code']}]")
        if error["code"] in NEXT:
            told.args = (f"{told}\n  try: {NEXT[error['code']]}",)
        details = error.get("details")
    except (ValueError, KeyError, TypeError):
        return CommandError(f"the node answered {status}")
    if isinstance(details, dict):
        shown = {name: value for name, value in details.items() if value is not None}
        if "line" in shown and "column" in shown:
            told.place = shown["line"], shown["column"]
        lines = [f"  {n}: {v}" for n, v in shown.items() if n not in {"position", "line", "column"}]
        told.args = ("\n".join([str(told), *lines]),)
    return told
