import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.standalone import conffile, rolepath
from server.standalone.config import ConfigError, dump, load, read_file, unknown


def test_a_file_has_strings_numbers_booleans_and_comments():
    text = '# a comment\ndb-uri = "a\\"b\\\\c" # more\nserver-port=80\ndb-plan-enabled = true\n'
    assert conffile.parse(text) == {
        "db-uri": 'a"b\\c', "server-port": 80, "db-plan-enabled": True,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["=", "a", 'a = "x', "a = x y", "1 = 2", "a ="])
def test_a_broken_file_names_its_line(text):
    with pytest.raises(conffile.ConfFileError, match="line 2"):
        conffile.parse("\n" + text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        conffile.parse(text)
    except conffile.ConfFileError:
        pass


def test_the_database_wins_over_the_environment_and_that_over_the_file():
    file = {"db-schemas": "a", "db-max-rows": 1, "jwt-aud": "f"}
    environment = {"PGRST_DB_SCHEMAS": "b, c", "PGRST_DB_MAX_ROWS": "2",
                   "PGRST_APP_SETTINGS_X": "y"}  # fmt: skip
    config = load(file, environment, {"db_max_rows": "3"})
    assert config.rest.schemas == ("b", "c")
    assert config.rest.max_rows == 3
    assert config.jwt_aud == "f"
    assert config.rest.app_settings == (("app.settings.X", "y"),)
    assert "db-max-rows = 3" in dump(config)


def test_old_names_are_understood():
    config = load({"db-schema": "x", "max-rows": 5, "role-claim-key": ".a"}, {})
    assert (config.rest.schemas, config.rest.max_rows) == (("x",), 5)
    assert config.role_path == ("a",)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("db-tx-end", "maybe", "transaction termination"),
        ("openapi-mode", "x", "openapi-mode"),
        ("log-level", "loud", "logging level"),
        ("server-port", "x", "whole number"),
        ("server-port", "70000", "between 1 and 65535"),
        ("server-port", 0, "between 1 and 65535"),
        ("admin-server-port", -1, "between 1 and 65535"),
        ("db-pool", "0", "between 1"),
        ("db-max-rows", -5, "between 0"),
        ("jwt-cache-max-entries", "-1", "between 0"),
        ("db-config", "banana", "true or false"),
        ("db-plan-enabled", "1e9", "true or false"),
        ("server-unix-socket-mode", "9", "octal"),
        ("server-unix-socket-mode", "077", "between 600 and 777"),
        ("openapi-server-proxy-uri", "ftp://x", "Malformed proxy uri"),
        ("jwt-role-claim-key", "role", "role-claim-key"),
        ("jwt-aud", "a b:c", "jwt-aud"),
        ("jwt-secret", "@/nowhere", "cannot read"),
        ("admin-server-port", "3000", "same as server-port"),
    ],
)
def test_bad_values_refuse_with_the_reason(name, value, said):
    with pytest.raises(ConfigError, match=said):
        load({name: value}, {})


def test_files_that_are_not_text(tmp_path):
    secret = bytes(range(128, 192))
    (tmp_path / "secret").write_bytes(secret + b"\n")
    assert load({"jwt-secret": f"@{tmp_path}/secret"}, {}).jwt_secret == secret
    with pytest.raises(ConfigError, match="not UTF-8"):
        load({"db-uri": f"@{tmp_path}/secret"}, {})
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_file(tmp_path / "secret")


def test_unknown_settings_are_named():
    assert unknown({"db-uri": "x", "db-urn": "y"}, {"PGRST_NOPE": "1", "HOME": "/"}) == [
        "db-urn",
        "PGRST_NOPE",
    ]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".role", "r"),
        ("$.role", "r"),
        ('.app."a-b"', "dashed"),
        (".list[1]", "two"),
        ('.list[?(@ == "two")]', "two"),
        ('.list[?(@ ^== "th")]', "three"),
        ('.list[?(@ ==^ "ee")]', "three"),
        ('.list[?(@ *== "w")]', "two"),
        ('.list[?(@ != "one")]', "two"),
        (".nope.deeper", None),
        (".list[9]", None),
    ],
)
def test_paths_into_claims(path, found):
    claims = {"role": "r", "app": {"a-b": "dashed"}, "list": ["one", "two", "three"]}
    assert rolepath.walk(claims, rolepath.parse(path)) == found
