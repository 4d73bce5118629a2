"""`ichibase types`: what it writes is what TypeScript takes and the server answers."""

import json
import subprocess

import pytest

from server.functions.confine import deno_binary
from tests.process.running import RunningNode
from tests.servers import open_folder

SQL = """
create type mood as enum ('sad', 'it''s ok');
create domain age as int check (value >= 0);
create table people (id int generated always as identity primary key, "odd name" text,
  mood mood not null default 'sad', moods mood[], age age, data jsonb, score numeric not null,
  whole text generated always as ('x') stored);
create table pets (id bigint primary key references people, owner int references people,
  born timestamptz default now());
create view moods as select id, mood from people;
create view counted as select count(*) as c from people;
create function find(age int, name text default 'x') returns setof people language sql
  as 'select * from people';
create function pairs() returns table (x int, y text) language sql as 'select 1, null::text';
create function same(a mood) returns mood language sql as 'select a';
create function same(a int) returns int language sql as 'select a';
create function unnamed(int) returns int language sql as 'select 1';
create function nothing() returns void language sql as 'select 1';
create function on_change() returns trigger language plpgsql as 'begin return new; end';
create schema extra;
create table extra."T-1" (a bool[]);
"""
USES = """
import type { Database, Json } from "./types.ts";
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true : false;
const yes = <_ extends true>() => {};
type Public = Database["public"];
type Person = Public["Tables"]["people"];
type Mood = "sad" | "it's ok";
yes<Same<Public["Enums"]["mood"], Mood>>();
yes<Same<Person["Row"], { age: number | null; data: Json | null; id: number; mood: Mood;
  moods: Mood[] | null; "odd name": string | null; score: number; whole: string | null }>>();
const good: Person["Insert"] = { score: 1, "odd name": "x", data: { a: [1, null] }, mood: "it's ok" };
// @ts-expect-error: the score is missing
const less: Person["Insert"] = { mood: "sad" };
// @ts-expect-error: the server makes the id
const fixed: Person["Insert"] = { score: 1, id: 1 };
const changed: Person["Update"] = { age: null };
// @ts-expect-error: no mood is called that
const wrong: Person["Update"] = { mood: "glad" };
yes<Same<Public["Tables"]["pets"]["Relationships"][0]["isOneToOne"], true>>();
yes<Same<Public["Tables"]["pets"]["Relationships"][1]["columns"], ["owner"]>>();
yes<Same<Public["Tables"]["pets"]["Relationships"][1]["isOneToOne"], false>>();
yes<Same<keyof Public["Views"]["counted"], "Row" | "Relationships">>();
const viewed: Public["Views"]["moods"]["Insert"] = { mood: "sad" };
yes<Same<Public["Functions"]["find"]["Args"], { age: number; name?: string }>>();
yes<Same<Public["Functions"]["find"]["Returns"], Person["Row"][]>>();
yes<Same<Public["Functions"]["pairs"]["Returns"], { x: number; y: string }[]>>();
yes<Same<Public["Functions"]["same"]["Returns"], Mood | number>>();
yes<Same<Public["Functions"]["nothing"]["Returns"], undefined>>();
yes<Same<keyof Public["Functions"], "find" | "nothing" | "pairs" | "same">>();
yes<Same<Database["extra"]["Tables"]["T-1"]["Row"], { a: boolean[] | null }>>();
console.log(good, less, fixed, changed, wrong, viewed);
"""  # noqa: E501


@pytest.fixture(scope="module")
def node():
    with open_folder("ichi-node-") as folder:
        running = RunningNode(folder)
        running.start()
        try:
            running.cli("sql", "default", "-c", SQL)
            yield running
        finally:
            running.stop()


def test_the_types_are_those_of_the_project(node, tmp_path):
    file = tmp_path / "types.ts"
    arguments = ["--schema", "public", "--schema", "extra", "-o", str(file)]
    assert "wrote" in node.cli("types", "default", *arguments).stderr
    (tmp_path / "uses.ts").write_text(USES)
    done = subprocess.run(
        [str(deno_binary()), "check", "--quiet", "uses.ts"], cwd=tmp_path, capture_output=True,
        text=True, timeout=60, env={"DENO_DIR": str(tmp_path / "deno"), "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = node.cli("types", "default", *arguments[:4]).stdout
    assert again == file.read_text()


def test_without_a_schema_those_that_are_exposed_are_meant(node):
    told = json.loads(node.cli("types", "default", "--json").stdout)
    assert told["schemas"] == ["public"]
    assert '"T-1"' not in told["typescript"]
    nothing = node.cli("types", "default", "--schema", "it's \\ none").stdout
    assert "Tables: { [_ in never]: never };" in nothing
    assert "cannot write" in node.cli("types", "default", "-o", "/no/where", ok=False).stderr
    assert "project_not_found" in node.cli("types", "nobody", ok=False).stderr
