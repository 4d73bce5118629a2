"""Whatever reaches the admin listener is answered with a coded refusal, never a failure."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.base.context import NodeConfig
from server.control.api import AdminApi, Application
from server.control.database import prepare
from server.control.projects import Projects
from tests.clusters import cluster_of

TOKEN = b"the token"


@pytest.fixture(scope="module")
def application(pg_cluster, tmp_path_factory):
    cluster = cluster_of(pg_cluster, "control_fuzz")
    dsn = asyncio.run(prepare(cluster, "control password"))
    config = NodeConfig(data_dir=tmp_path_factory.mktemp("data"), control_dsn=dsn)
    made = Application()
    made.api, made.token = AdminApi(Projects(dsn, {cluster.id: cluster}, config)), TOKEN
    asyncio.run(made.api.projects.create("fuzzed"))
    return made


class Protocol:
    """What the HTTP server hands to the application."""

    def __init__(self, body):
        self.chunks = iter([body])
        self.answer = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        for chunk in self.chunks:
            return chunk
        raise StopAsyncIteration

    def response_bytes(self, status, headers, body):
        self.answer = status, dict(headers), body


def send(application, method, path, body=b"", token=TOKEN, query="", headers=None):
    given = {"content-length": str(len(body)), **(headers or {})}
    if token is not None:
        given["authorization"] = "Bearer " + token.decode("latin-1")
    scope = SimpleNamespace(
        proto="http", method=method, path=path, query_string=query, headers=given
    )
    protocol = Protocol(body)
    asyncio.run(application.__rsgi__(scope, protocol))
    status, headers, answer = protocol.answer
    if headers["content-type"] == "application/json":
        answer = json.loads(answer)
    return status, answer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                               max_size=3),
    max_leaves=8,
)  # fmt: skip
NAMES = st.sampled_from(["fuzzed", "nobody", "..", "a%00b", "é", "x" * 300]) | st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=12
)
SECTIONS = st.sampled_from(
    ["cors", "postgres", "auth", "mongo", "realtime", "storage", "functions", "other"]
)
KEYS = (
    "name",
    "flavor",
    "tier",
    "sql",
    "timeout_ms",
    "origins",
    "schemas",
    "max_rows",
    "owner",
    "limits",
    "reason",
    "email",
    "bound",
    "suspended",
    "connections",
    "sleep_days",
)
KNOWN = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON))
BODIES = st.binary(max_size=30) | (JSON | KNOWN).map(lambda value: json.dumps(value).encode())


@st.composite
def requests(draw):
    base = f"/admin/v1/projects/{draw(NAMES)}"
    tails = [
        "",
        "/sql",
        "/migrations",
        f"/settings/{draw(SECTIONS)}",
        "/nothing",
        "/",
        "//",
        "/usage",
        "/audit",
        "/suspend",
        "/resume",
        "/sleep",
        "/wake",
        "/undelete",
    ]
    owner = f"/admin/v1/owners/{draw(NAMES)}"
    path = draw(st.sampled_from(["/admin/v1/projects", "/admin/v1", "/", "", "/healthz", "*"])
                | st.sampled_from([*(base + tail for tail in tails), owner, owner + "/audit",
                                   "/admin/v1/owners", "/admin/v1/tiers"]))  # fmt: skip
    method = draw(st.sampled_from(["GET", "POST", "PUT", "PATCH", "HEAD", "OPTIONS", "BREW"]))
    return method, path, draw(BODIES)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests())
def test_every_request_is_answered_or_refused_with_a_code(application, request_):
    status, answer = send(application, *request_)
    assert 200 <= status < 500, answer
    if status >= 400:
        assert isinstance(answer["code"], str)
        assert isinstance(answer["detail"], str)


@pytest.mark.parametrize(
    "body",
    [b'{"sql":"\\ud800"}', b'{"sql":"select 1\\u0000"}', b'{"sql":' + b"[" * 100_000 + b"}",
     b'{"name":"\xff"}', b'{"sql":1}', b'{"sql":"select 1","timeout_ms":0}', b"nul"],
)  # fmt: skip
@pytest.mark.parametrize("tail", ["sql", "migrations", "settings/cors"])
def test_hostile_bodies_are_refused(application, body, tail):
    method = "PUT" if tail.startswith("settings") else "POST"
    status, answer = send(application, method, f"/admin/v1/projects/fuzzed/{tail}", body)
    assert status == 400, answer


@given(st.binary(max_size=30).filter(lambda token: token.strip() != TOKEN))
def test_no_other_token_opens(application, token):
    assert send(application, "GET", "/admin/v1/projects", token=token)[0] == 401


def test_requests_without_a_token_or_with_another_scheme_are_refused(application):
    for header in (None, {"authorization": "Basic dGhlIHRva2Vu"}, {"authorization": "the token"}):
        status, answer = send(application, "GET", "/admin/v1/projects", token=None, headers=header)
        assert (status, answer["code"]) == (401, "invalid_token")
    assert send(application, "GET", "/readyz", token=None)[0] == 200


def test_bodies_have_a_limit_and_lengths_are_numbers(application):
    for length, expected in (("99999999999", 413), ("x", 400), ("-1", 400), ("", 400)):
        status, _ = send(
            application, "POST", "/admin/v1/projects", headers={"content-length": length}
        )
        assert status == expected


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/admin/v1/projects/a\0b", b""),
        ("DELETE", "/admin/v1/projects/a\0b", b""),
        ("GET", "/admin/v1/projects/a\0b/usage", b""),
        ("POST", "/admin/v1/projects", b'{"name": "a\\u0000b"}'),
        ("POST", "/admin/v1/projects", b'{"name": "ab", "owner": "a\\u0000b"}'),
        ("POST", "/admin/v1/projects/fuzzed/migrations", b'{"name": "\\u0000", "sql": "select 1"}'),
        ("POST", "/admin/v1/projects/fuzzed/sql", b'{"sql": "select \'\\u0000\'"}'),
    ],
)
def test_a_nul_is_refused_where_it_stands(application, method, path, body):
    status, answer = send(application, method, path, body)
    assert 400 <= status < 500
    assert answer["code"]
