"""Functions and their secrets in backups: restored with their project, on this node or another."""

import asyncio
import shutil

import msgspec
import pytest

from server.backup import archive
from server.backup.jobs import Jobs, enqueue
from server.base.events import Events
from server.base.metrics import Metrics
from server.control.projects import Projects
from server.functions.store import Built, Store
from server.functions.vault import Vault, VaultError, key_path

SECRETS = {"STRIPE_KEY": "sk_live_" + "7" * 20, "GREETING": "good day"}
CODE = b"Deno.serve(() => new Response('hello'));" + b"//" + b"x" * 700_000


class Node:
    """A node's view: its data folder, with its key, and a folder of backups."""

    def __init__(self, world, data_dir, backups, passphrase=None):
        self.config = msgspec.structs.replace(
            world.config, data_dir=data_dir, backup_url=str(backups), backup_key_file=passphrase
        )
        self.projects = Projects(world.dsn, {world.cluster.id: world.cluster}, self.config)
        self.store = Store(world.dsn, Vault(key_path(data_dir)))

    async def job(self, what, project, **args):
        jobs = Jobs(self.projects, Events(), Metrics())
        async with self.projects.control() as control:
            number = await enqueue(control, what, project, args, "test")
        assert await jobs.once()
        async with self.projects.control() as control:
            cursor = await control.execute(
                "select state, result, error from jobs where id = $1", (number,)
            )
            state, result, error = await cursor.fetchone()
        assert state == "done", error
        return result

    async def facts(self, slug):
        """What is served, and the secrets that this node can read."""
        project = (await self.projects.find(slug)).id
        served = await self.store.find(project, "hello")
        try:
            secrets = await self.store.secrets(project)
        except VaultError:
            secrets = None
        code = await self.store.code(served) if served else None
        return served and (served.version, served.auth, served.outbound), code, secrets


async def deployed(node, slug):
    await node.projects.create(slug)
    project = (await node.projects.find(slug)).id
    built = Built(CODE, '{"version": "5"}', ["index.ts"], "index.ts")
    for auth, outbound in (("key", None), ("none", ["api.example.com"])):
        await node.store.deploy(project, "hello", built, auth, outbound, 10)
    await node.store.set_secrets(project, SECRETS)
    return project


@pytest.mark.parametrize("sealed", [False, True])
def test_a_project_comes_back_with_its_functions_on_its_node_and_on_another(
    world, tmp_path, sealed
):
    slug = f"kept-{'sealed' if sealed else 'plain'}"
    passphrase = None
    if sealed:
        passphrase = tmp_path / "passphrase"
        passphrase.write_text("a passphrase that nobody guesses\n")
    here = Node(world, tmp_path / "here", tmp_path / "backups", passphrase)
    there = Node(world, tmp_path / "there", tmp_path / "backups", passphrase)

    async def go():
        project = await deployed(here, slug)
        before = await here.facts(slug)
        assert before == ((2, "none", ("api.example.com",)), CODE, SECRETS)
        backup = (await here.job("backup", slug, kind="manual"))["backup"]
        await here.job("verify", slug, backup=backup)
        folder = tmp_path / "backups" / archive.folder(project, backup)
        assert (folder / archive.FUNCTIONS).exists()
        for path in folder.iterdir():  # not even a backup without a key shows a secret
            assert SECRETS["STRIPE_KEY"].encode() not in path.read_bytes()
            assert SECRETS["GREETING"].encode() not in path.read_bytes()

        # In place, functions and secrets stay as they are now.
        await here.store.set_secrets(project, {"GREETING": "later"})
        result = await here.job("restore", slug, backup=backup)
        assert (result["functions"], result["warnings"]) == (0, [])
        assert (await here.facts(slug))[2] == {**SECRETS, "GREETING": "later"}

        # After the project is gone, and as a copy, they are those of the backup.
        await here.projects.delete(slug)
        for into in (slug, f"{slug}-copy"):
            result = await here.job("restore", slug, backup=backup, into=into)
            assert (result["functions"], result["warnings"]) == (1, [])
            assert await here.facts(into) == before
            assert (await here.projects.find(into)).id != project

        # On a node with another key: only a backup with a passphrase brings the secrets.
        other = f"{slug}-moved"
        result = await there.job("restore", slug, backup=backup, into=other)
        assert result["functions"] == 1
        if sealed:
            assert result["warnings"] == []
            assert await there.facts(other) == before
        else:
            assert len(result["warnings"]) == 1
            assert "GREETING, STRIPE_KEY" in result["warnings"][0]
            assert "functions_key" in result["warnings"][0]
            assert await there.facts(other) == (*before[:2], {})
            # With the key of the node that made it, it brings them too.
            key_path(tmp_path / "there").unlink()
            shutil.copy(key_path(tmp_path / "here"), key_path(tmp_path / "there"))
            await there.projects.delete(other)
            keyed = Node(world, tmp_path / "there", tmp_path / "backups")
            result = await keyed.job("restore", slug, backup=backup, into=other)
            assert result["warnings"] == []
            assert await keyed.facts(other) == before
            await keyed.store.close()
        await there.store.close()
        for name in (slug, f"{slug}-copy", other):
            await here.projects.delete(name)
        await here.store.close()

    asyncio.run(go())


def test_a_project_without_functions_has_nothing_of_them_in_its_backup(world, tmp_path):
    node = Node(world, tmp_path / "here", tmp_path / "backups")

    async def go():
        await node.projects.create("bare")
        backup = (await node.job("backup", "bare", kind="manual"))["backup"]
        assert not list((tmp_path / "backups").rglob(archive.FUNCTIONS))
        result = await node.job("restore", "bare", backup=backup, into="bare-copy")
        assert (result["functions"], result["warnings"]) == (0, [])
        for name in ("bare", "bare-copy"):
            await node.projects.delete(name)

    asyncio.run(go())


def test_two_processes_that_need_the_key_at_once_agree_on_it(tmp_path):
    path = key_path(tmp_path)
    first, second = Vault(path), Vault(path)
    first._make()
    second._make()  # as when both found none
    assert second.open("p", "A", first.seal("p", "A", "x")) == "x"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["functions_key"]
