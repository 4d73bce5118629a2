import pytest

from server.node.settings import SettingsError, load


def test_flags_win_over_the_environment_and_both_over_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ichibase.toml").write_text('port = 1234\nhost = "0.0.0.0"\nworkers = 3\n')
    found = load({"port": 9000}, {"ICHIBASE_WORKERS": "2", "ICHIBASE_PORT": "7000"})
    assert (found.port, found.workers, found.host, found.admin_port) == (9000, 2, "0.0.0.0", 8001)
    assert found.address() == "http://127.0.0.1:9000"


def test_the_usual_database_url_is_understood():
    found = load({}, {"DATABASE_URL": "postgresql://x@y/z"})
    assert found.database_url == "postgresql://x@y/z"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ICHIBASE_PROT": "1"}, "did you mean port"),
        ({"ICHIBASE_PORT": "many"}, "port"),
        ({"ICHIBASE_PORT": "0"}, "port must be"),
        ({"ICHIBASE_PORT": "8001"}, "must differ"),
        ({"ICHIBASE_WORKERS": "0"}, "workers must be"),
        ({"ICHIBASE_CONFIG": "/nowhere.toml"}, "cannot read"),
        ({"ICHIBASE_LOG_FORMAT": "xml"}, "text or json"),
    ],
)
def test_what_cannot_be_used_is_named(environment, said):
    with pytest.raises(SettingsError, match=said):
        load({}, environment)
