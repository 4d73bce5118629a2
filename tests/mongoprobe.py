"""Whether a document server answers yet. A driver's failed attempts may leave sockets behind, which
must not be taken for a leak of what is tested."""

from __future__ import annotations

import contextlib
import gc
import time
import warnings

from pymongo import MongoClient
from pymongo.errors import PyMongoError


@contextlib.contextmanager
def forgiving():
    """Sockets left behind within are collected without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()


def _answers(url):
    try:
        with MongoClient(url, serverSelectionTimeoutMS=700, connectTimeoutMS=700) as client:
            client.get_default_database("admin").command("ping")
            return True
    except PyMongoError:
        return False


def wait_for(url, seconds=180.0, alive=lambda: True):
    """Until the login in the URL is accepted. alive: asked meanwhile."""
    deadline = time.monotonic() + seconds
    with forgiving():
        while not _answers(url):
            assert alive(), "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
            gc.collect()
