"""What an app gets in its environment, and what wins over what."""

import pytest

from meshrun.supervisor.configuration.model import Protocol
from meshrun.supervisor.environment import (
    UpstreamAddress,
    effective,
    hook_variables,
    injected,
    notify_variables,
    variable_name,
    variables,
)

IDENTITY = "spiffe://shop.mesh/ns/default/dc/local/svc/web"


def web(port: int | None = 8080, run_id: str | None = "r1") -> dict[str, str]:
    return injected(
        app="web",
        instance="web.1",
        identity=IDENTITY,
        run_id=run_id,
        port=port,
        upstreams=[UpstreamAddress("api-v1", "127.0.0.1", 21000)],
    )


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [("backend", "BACKEND"), ("echo-server", "ECHO_SERVER"), ("v1.API", "V1_API"), ("é", "_")],
)
def test_every_other_character_becomes_an_underscore(upstream: str, expected: str) -> None:
    assert variable_name(upstream) == expected


def test_an_instance_is_told_who_it_is_and_where_its_upstreams_are() -> None:
    assert web() == {
        "PORT": "8080",
        "UPSTREAM_API_V1_ADDR": "127.0.0.1:21000",
        "UPSTREAM_API_V1_HOST": "127.0.0.1",
        "UPSTREAM_API_V1_PORT": "21000",
        "MESHRUN_APP": "web",
        "MESHRUN_INSTANCE": "web.1",
        "MESHRUN_IDENTITY": IDENTITY,
        "MESHRUN_RUN_ID": "r1",
    }


@pytest.mark.parametrize("protocol", ["http", "http2", "grpc"])
def test_an_upstream_that_speaks_http_has_a_url(protocol: Protocol) -> None:
    assert variables([("api", "tcp")], has_port=True).keys().isdisjoint({"UPSTREAM_API_URL"})
    upstream = UpstreamAddress("api", "127.0.0.1", 21000, protocol)
    values = injected(
        app="web", instance="web.1", identity="", run_id=None, port=None, upstreams=[upstream]
    )
    assert values["UPSTREAM_API_URL"] == "http://127.0.0.1:21000"


def test_an_address_of_version_six_is_in_brackets() -> None:
    upstream = UpstreamAddress("api", "::1", 21000, "http")
    values = injected(
        app="web", instance="web.1", identity="", run_id=None, port=None, upstreams=[upstream]
    )
    assert values["UPSTREAM_API_ADDR"] == "[::1]:21000"
    assert values["UPSTREAM_API_HOST"] == "::1"


def test_what_is_nearer_to_the_app_wins() -> None:
    caller = {"A": "caller", "B": "caller", "C": "caller", "MESHRUN_APP": "caller"}
    env_file = {"B": "file", "C": "file", "MESHRUN_APP": "file"}
    result = effective(caller, env_file, {"C": "env", "MESHRUN_APP": "env"}, web())
    assert (result["A"], result["B"], result["C"]) == ("caller", "file", "env")
    assert result["MESHRUN_APP"] == "web"


@pytest.mark.parametrize("port", [None, 0])
def test_without_a_port_there_is_no_port_from_elsewhere(port: int | None) -> None:
    assert "PORT" not in effective({"PORT": "1"}, {"PORT": "2"}, {"PORT": "3"}, web(port))


def test_what_the_callers_keeper_gave_to_the_caller_is_not_handed_on() -> None:
    keepers = {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "7"}
    assert effective(keepers, {}, {}, web()).keys().isdisjoint(keepers)
    assert effective(keepers, {}, {"NOTIFY_SOCKET": "own"}, web())["NOTIFY_SOCKET"] == "own"


def test_one_that_notifies_is_told_where_and_how_often() -> None:
    assert notify_variables("/run/x", None) == {"NOTIFY_SOCKET": "/run/x"}
    assert notify_variables("@x", 2.5)["WATCHDOG_USEC"] == "2500000"


def test_a_hook_is_told_what_there_is_to_tell_and_a_mesh_started_by_it_is_not() -> None:
    assert hook_variables("on_ready", None, None, None) == {"MESHRUN_HOOK": "on_ready"}
    told = hook_variables("on_exit", None, "KILL", restarts=True)
    assert told == {
        "MESHRUN_HOOK": "on_exit",
        "MESHRUN_EXIT_SIGNAL": "KILL",
        "MESHRUN_WILL_RESTART": "yes",
    }
    assert hook_variables("on_exit", 3, None, restarts=False)["MESHRUN_EXIT_CODE"] == "3"
    assert effective(told, {}, {}, web()).keys().isdisjoint(told)


def test_another_runs_marker_is_not_handed_on() -> None:
    assert "MESHRUN_RUN_ID" not in effective({"MESHRUN_RUN_ID": "x"}, {}, {}, web(run_id=None))
    assert effective({"MESHRUN_RUN_ID": "x"}, {}, {}, web())["MESHRUN_RUN_ID"] == "r1"


def test_python_writes_unbuffered_unless_told_otherwise() -> None:
    assert effective({}, {}, {}, web())["PYTHONUNBUFFERED"] == "1"
    assert effective({"PYTHONUNBUFFERED": ""}, {}, {}, web())["PYTHONUNBUFFERED"] == ""
    assert effective({}, {}, {"PYTHONUNBUFFERED": "0"}, web())["PYTHONUNBUFFERED"] == "0"


def test_the_names_that_env_must_leave_alone() -> None:
    assert set(variables([("api", "http")], has_port=True)) == {
        "PORT",
        *(f"UPSTREAM_API_{part}" for part in ("ADDR", "HOST", "PORT", "URL")),
        *(f"MESHRUN_{part}" for part in ("APP", "INSTANCE", "IDENTITY", "RUN_ID")),
    }
