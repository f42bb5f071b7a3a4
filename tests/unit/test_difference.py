"""What a changed configuration means for what runs."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from meshrun.proxy.intentions import Intention
from meshrun.supervisor import plan
from meshrun.supervisor.configuration.model import (
    App,
    Configuration,
    Cron,
    Dependency,
    ExecCheck,
    External,
    Hooks,
    Interval,
    LogCheck,
    Mesh,
    NotifyCheck,
    Probe,
    Stop,
    TcpCheck,
    UpstreamReference,
    Watch,
)
from meshrun.supervisor.difference import Difference, applied, difference
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.plan import Plan, Selection, held

NAMES = ("api", "db", "web")


def app(name: str, **changes: object) -> App:
    return replace(App(name=name, command=("run", name)), **changes)  # type: ignore[arg-type]


def to(service: str, **changes: object) -> UpstreamReference:
    reference = UpstreamReference(service=service, name=service)
    return replace(reference, **changes)  # type: ignore[arg-type]


def configuration(*apps: App, mesh: Mesh | None = None, **services: External) -> Configuration:
    return Configuration(
        file="mesh.toml",
        folder=Path("/srv/shop"),
        mesh=mesh or Mesh(name="shop"),
        apps={each.name: each for each in apps},
        services=services,
        intentions=(),
    )


def made(config: Configuration, before: Plan | None = None) -> Plan:
    remembered = {} if before is None else {**before.ports, **held(before.instances)}
    return plan.make(config, Selection(), remembered, lambda _wish, _port: True, {}, "r1")


def between(old: Configuration, new: Configuration) -> Difference:
    before = made(old)
    return difference(before, made(new, before))


def change(old: App, new: App) -> Difference:
    """Return what a change of one app means, beside another that it may call."""
    return between(configuration(old, app("db")), configuration(new, app("db")))


def test_the_same_file_changes_nothing() -> None:
    config = configuration(app("web", upstreams=(to("db"),)), app("db"))
    assert not between(config, config)


def test_apps_come_and_go() -> None:
    found = between(configuration(app("web"), app("db")), configuration(app("db"), app("api")))
    assert [i.name for i in found.added] == ["api.1"]
    assert [i.name for i in found.removed] == ["web.1"]
    assert not found.changed


def test_instances_come_and_go_and_the_others_are_what_they_were() -> None:
    found = change(app("web"), app("web", instances=3))
    assert [i.name for i in found.added] == ["web.2", "web.3"]
    assert not any(c.restarts or c.in_place for c in found.changed)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"command": ("run", "faster")}, ("command",)),
        ({"cwd": "elsewhere"}, ("cwd",)),
        ({"env": {"A": "1"}}, ("env",)),
        ({"env_file": {"A": "1"}}, ("env",)),
        ({"port": 8080}, ("port",)),
        ({"every": Interval(60.0)}, ("every",)),
        ({"upstreams": (to("db"),)}, ("upstreams",)),
        ({"ready": Probe(check=LogCheck("up"))}, ("ready",)),
        ({"ready": Probe(check=NotifyCheck())}, ("ready",)),
        ({"alive": Probe(check=NotifyCheck())}, ("alive",)),
    ],
)
def test_what_a_process_is_started_with_restarts_it(
    changes: dict[str, object], reasons: tuple[str, ...]
) -> None:
    (found,) = change(app("web"), app("web", **changes)).changed
    assert found.process == reasons


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"restart": "always"}, ("restart",)),
        ({"stop": Stop(timeout_s=1.0)}, ("stop",)),
        ({"depends_on": {"db": Dependency()}}, ("depends_on",)),
        ({"watch": Watch()}, ("watch",)),
        ({"every": Cron("0 * * * *")}, ("every",)),
        ({"hooks": Hooks(on_exit=("clean", "up"))}, ("hooks",)),
        ({"ready": Probe(check=TcpCheck())}, ("ready",)),
        ({"alive": Probe(check=ExecCheck(("true",)))}, ("alive",)),
        ({"connect_timeout_s": 1.0}, ("connect_timeout",)),
        ({"max_connections": 7}, ("max_connections",)),
        ({"idle_timeout_s": 9.0}, ("idle_timeout",)),
    ],
)
def test_how_it_is_kept_and_what_its_sidecar_is_told_changes_while_it_runs(
    changes: dict[str, object], reasons: tuple[str, ...]
) -> None:
    every = {"every": Interval(60.0)} if "every" in changes else {}
    (found,) = change(app("web", **every), app("web", **changes)).changed
    assert (found.restarts, found.in_place) == (False, reasons)


def test_a_probe_that_is_heard_and_not_asked_any_more_begins_with_a_new_process() -> None:
    heard = app("web", ready=Probe(check=LogCheck("up")))
    (found,) = change(heard, app("web", ready=Probe(check=TcpCheck()))).changed
    assert found.process == ("ready",)


def test_an_upstream_that_is_only_called_otherwise_is_told_to_the_sidecar() -> None:
    old = app("web", upstreams=(to("db"),))
    (found,) = change(old, app("web", upstreams=(to("db", connect_timeout_s=1.0),))).changed
    assert (found.restarts, found.in_place) == (False, ("upstreams",))


def test_another_number_of_workers_restarts_the_sidecar_alone() -> None:
    (found,) = change(app("web"), app("web", workers=2)).changed
    assert (found.process, found.sidecar) == ((), ("workers",))


def test_a_service_that_speaks_http_now_restarts_its_sidecar_and_its_callers() -> None:
    web = app("web", upstreams=(to("db"),))
    found = between(
        configuration(web, app("db")), configuration(web, app("db", protocol="http"))
    ).changed
    reasons = {c.name: (c.process, c.sidecar) for c in found}
    assert reasons == {
        "web.1": (("upstreams",), ("upstreams",)),
        "db.1": ((), ("protocol",)),
    }


def test_a_line_that_moved_in_the_file_is_no_change() -> None:
    found = change(app("web", line=3), app("web", line=30))
    assert not found
    there = Intention(source="web", destination="db", action="allow", where="mesh.toml:3")
    moved = Intention(source="web", destination="db", action="allow", where="mesh.toml:9")
    config = configuration(app("web"), app("db"))
    assert not between(replace(config, intentions=(there,)), replace(config, intentions=(moved,)))
    assert between(config, replace(config, intentions=(there,))).mesh == ("intentions",)


def test_what_concerns_all_is_said_of_the_mesh() -> None:
    old = configuration(app("web"))
    new = configuration(
        app("web"), mesh=Mesh(name="shop", default_intention="allow", leaf_ttl_s=60.0)
    )
    assert between(old, new).mesh == ("default_intention", "leaf_ttl")


def test_another_address_of_an_external_service_is_told_to_its_sidecar() -> None:
    old = configuration(app("web"), pg=External(name="pg", address="127.0.0.1:5432"))
    new = configuration(app("web"), pg=External(name="pg", address="127.0.0.1:5433"))
    (found,) = between(old, new).changed
    assert (found.name, found.restarts, found.in_place) == ("pg.1", False, ("address",))


def test_an_app_in_place_of_an_external_service_is_another_thing() -> None:
    old = configuration(pg=External(name="pg", address="127.0.0.1:5432"))
    found = between(old, configuration(app("pg")))
    assert [i.name for i in found.added] == [i.name for i in found.removed] == ["pg.1"]
    assert not found.changed


def test_who_has_a_port_that_another_gets_must_go_first() -> None:
    old = configuration(app("web", port=8080), app("api", port=8081))
    assert between(old, configuration(app("site", port=8080), app("api", port=8081))).vacating == {
        "web.1"
    }
    swapped = configuration(app("web", port=8081), app("api", port=8080))
    assert between(old, swapped).vacating == {"web.1", "api.1"}


# The laws, for any two configurations.

probes = st.none() | st.builds(
    Probe, check=st.sampled_from([TcpCheck(), LogCheck("up"), ExecCheck(("true",))])
)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    external = draw(st.booleans())
    services = {"pg": External(name="pg", address="127.0.0.1:5432")} if external else {}
    callable_names = [*names, *services]
    apps = {}
    for name in names:
        called = draw(st.lists(st.sampled_from(callable_names), unique=True, max_size=2))
        apps[name] = app(
            name,
            command=("run", draw(st.sampled_from(["a", "b"]))),
            env=draw(st.dictionaries(st.sampled_from("AB"), st.sampled_from("12"), max_size=2)),
            port=draw(st.sampled_from([None, None, 0, 8000, 8010])),
            instances=draw(st.integers(1, 3)),
            workers=draw(st.integers(1, 2)),
            protocol=draw(st.sampled_from(["tcp", "http"])),
            restart=draw(st.sampled_from(["always", "never"])),
            ready=draw(probes),
            connect_timeout_s=draw(st.sampled_from([1.0, 5.0])),
            upstreams=tuple(
                to(each, port=draw(st.sampled_from([None, 21500, 21510]))) for each in called
            ),
            line=draw(st.integers(1, 3)),
        )
    return replace(configuration(), apps=apps, services=services)


@st.composite
def two_plans(draw: st.DrawFn) -> tuple[Plan, Plan]:
    old, new = draw(configurations()), draw(configurations())
    try:
        before = made(old)
        return before, made(new, before)
    except MeshrunError:  # two want the same port: the file would be refused
        assume(False)
        raise


@given(two_plans())
def test_a_difference_that_is_applied_makes_the_new_plan(plans: tuple[Plan, Plan]) -> None:
    old, new = plans
    assert applied(old, difference(old, new)) == new


@given(two_plans())
def test_nothing_differs_from_itself(plans: tuple[Plan, Plan]) -> None:
    for each in plans:
        found = difference(each, each)
        assert not found
        assert (found.added, found.removed, found.changed) == ((), (), ())
        assert not found.vacating


@given(two_plans())
def test_who_is_not_restarted_would_be_started_the_same_way(plans: tuple[Plan, Plan]) -> None:
    old, new = plans
    found = difference(old, new)
    restarted = {c.name for c in found.changed if c.process} | {i.name for i in found.added}
    for name, now in new.by_name.items():
        if name not in restarted:
            was = old.by_name[name]
            assert (was.argv, was.cwd, was.environment) == (now.argv, now.cwd, now.environment)


@given(two_plans())
def test_who_keeps_its_sidecar_has_the_same_listeners_and_gives_none_away(
    plans: tuple[Plan, Plan],
) -> None:
    old, new = plans
    found = difference(old, new)
    restarted = {c.name for c in found.changed if c.sidecar} | {i.name for i in found.added}
    for name, now in new.by_name.items():
        if name not in restarted:
            was = old.by_name[name]
            assert (was.inbound_port, was.workers) == (now.inbound_port, now.workers)
            listeners = [[(u.name, u.port) for u in one.upstreams] for one in (was, now)]
            assert listeners[0] == listeners[1]
    ends = {i.name for i in found.removed} | {c.name for c in found.changed if c.restarts}
    assert found.vacating <= ends
