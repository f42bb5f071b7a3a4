"""What a one-off command is given: a name, an identity, upstreams, an environment."""

from dataclasses import replace
from pathlib import Path

import pytest

from meshrun.supervisor import oneoff
from meshrun.supervisor.configuration.model import App, Configuration, Mesh, UpstreamReference
from meshrun.supervisor.environment import effective
from meshrun.supervisor.errors import MeshrunError

WEB = App(
    name="web",
    command=("run", "web"),
    port=8000,
    workers=3,
    upstreams=(UpstreamReference(service="api", name="backend", port=21010),),
    env_file={"FROM": "file", "KEEP": "file"},
    env={
        "FROM": "env ${WHO}",
        "SELF": "http://127.0.0.1:${PORT}",
        "CALL": "${UPSTREAM_BACKEND_ADDR}",
    },
)
MESH = Configuration(
    file="mesh.toml",
    folder=Path("/srv/shop"),
    mesh=Mesh(name="shop"),
    apps={"web": WEB, "api": App(name="api", command=("run", "api"))},
    services={},
    intentions=(),
)


def planned(app: App = WEB, port: int | None = 8000) -> oneoff.PlannedOneOff:
    return oneoff.plan(MESH, app, 2, {"backend": 21500}, port, {"WHO": "run", "PORT": "1"})


def test_it_has_the_app_s_identity_and_takes_no_calls() -> None:
    instance = planned().instance
    assert (instance.name, instance.service) == ("web.run-2", "web")
    assert str(instance.identity) == "spiffe://shop.mesh/ns/default/dc/local/svc/web"
    assert (instance.port, instance.inbound_port, instance.target) == (None, None, None)
    assert len(instance.sidecar) == 1


def test_its_upstream_has_a_port_of_its_own_also_where_the_app_s_is_fixed() -> None:
    (upstream,) = planned().instance.upstreams
    assert (upstream.name, upstream.service, upstream.port) == ("backend", "api", 21500)


def test_its_environment_lies_over_that_of_whoever_calls() -> None:
    found = planned()
    caller = {"WHO": "me", "FROM": "me", "PORT": "9", "MESHRUN_RUN_ID": "of another mesh"}
    values = effective(caller, found.env_file, found.env, found.injected)
    assert values["WHO"] == "me"
    assert (values["FROM"], values["KEEP"]) == ("env run", "file")
    assert values["CALL"] == values["UPSTREAM_BACKEND_ADDR"] == "127.0.0.1:21500"
    assert values["MESHRUN_INSTANCE"] == "web.run-2"
    # The app listens there; the command listens nowhere, and is no process of the run.
    assert values["SELF"] == "http://127.0.0.1:8000"
    assert not {"PORT", "MESHRUN_RUN_ID"} & set(values)


def test_a_port_that_is_not_known_is_an_error_only_for_who_asks_for_it() -> None:
    with pytest.raises(MeshrunError, match=r"\$\{PORT\} is not set"):
        planned(port=None)
    assert planned(replace(WEB, env={}), port=None).env == {}
