"""The plan: which instances with which ports and environments a configuration means."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from meshrun.proxy.messages import Requests
from meshrun.supervisor import plan
from meshrun.supervisor.configuration.model import (
    App,
    Configuration,
    Dependency,
    ExecCheck,
    External,
    HttpCheck,
    LogCheck,
    Mesh,
    Probe,
    TcpCheck,
    UpstreamReference,
)
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.plan import Plan, Selection
from meshrun.supervisor.ports import PortTakenError, Wish

CALLER = {"PATH": "/bin", "WHO": "world"}


def app(name: str, **changes: object) -> App:
    return replace(App(name=name, command=("run", name)), **changes)  # type: ignore[arg-type]


def to(service: str, name: str | None = None, port: int | None = None) -> UpstreamReference:
    return UpstreamReference(service=service, name=name or service, port=port)


def configuration(*apps: App, **services: External) -> Configuration:
    return Configuration(
        file="mesh.toml",
        folder=Path("/srv/shop"),
        mesh=Mesh(name="shop"),
        apps={each.name: each for each in apps},
        services=services,
        intentions=(),
    )


def free(_wish: Wish, _port: int) -> bool:
    return True


def make(
    config: Configuration,
    selection: Selection | None = None,
    remembered: Mapping[str, int] | None = None,
    caller: Mapping[str, str] = CALLER,
) -> Plan:
    return plan.make(config, selection or Selection(), remembered or {}, free, caller, "r1")


def test_every_instance_has_ports_of_its_own_upstreams_before_inbound_ones() -> None:
    made = make(configuration(app("web", instances=2, upstreams=(to("api"),)), app("api")))
    found = {
        i.name: (i.port, i.inbound_port, [u.port for u in i.upstreams]) for i in made.instances
    }
    assert found == {
        "web.1": (20000, 21002, [21000]),
        "web.2": (20001, 21003, [21001]),
        "api.1": (20002, 21004, []),
    }


def test_fixed_ports_count_up_with_the_instances() -> None:
    web = app("web", instances=2, port=8080, upstreams=(to("api", port=9000),))
    made = make(configuration(web, app("api")))
    assert [(i.port, i.upstreams[0].port) for i in made.of("web")] == [(8080, 9000), (8081, 9001)]


def test_isolated_every_fixed_port_is_allocated_too() -> None:
    web = app("web", port=8080, upstreams=(to("api", port=9000),))
    made = make(configuration(web, app("api")), Selection(isolated=True))
    (instance,) = made.of("web")
    assert (instance.port, instance.upstreams[0].port) == (20000, 21000)


def test_one_that_takes_no_calls_has_no_port_and_no_inbound_side() -> None:
    (instance,) = make(configuration(app("job", port=0))).instances
    assert (instance.port, instance.inbound_port, instance.target) == (None, None, None)
    assert instance.environment is not None
    assert "PORT" not in instance.environment


def test_a_sidecar_has_as_many_workers_as_the_file_says_and_they_are_told_apart_by_number() -> None:
    made = make(
        configuration(
            app("web", workers=2, instances=2), app("api"), db=External(name="db", address="h:1")
        )
    )
    assert [[worker.name for worker in i.sidecar] for i in made.instances] == [
        ["web.1/1", "web.1/2"],
        ["web.2/1", "web.2/2"],
        ["api.1"],
        ["db.1"],
    ]
    assert made.of("web")[0].sidecar[1].title == "worker 2 of the sidecar of web.1"
    assert made.of("api")[0].sidecar[0].title == "sidecar of api.1"


@pytest.mark.parametrize(("workers", "limit"), [(1, 10_000), (3, 100), (64, 64), (7, 30_000)])
def test_the_parts_of_a_limit_add_up_to_it_and_none_is_empty(workers: int, limit: int) -> None:
    (instance,) = make(configuration(app("web", workers=workers))).instances
    parts = [worker.part(limit) for worker in instance.sidecar]
    assert sum(parts) == limit
    assert 0 < min(parts) <= max(parts) <= min(parts) + 1


def test_limits_are_those_of_the_file() -> None:
    few = replace(to("db"), max_connections=7)
    config = configuration(
        app("web", max_connections=100, upstreams=(few,)),
        db=External(name="db", address="h:1", max_connections=20, workers=2),
    )
    web, db = make(config).instances
    assert (web.max_connections, web.upstreams[0].max_connections) == (100, 7)
    assert (db.max_connections, db.workers) == (20, 2)


def test_workers_are_counted_before_there_is_a_plan() -> None:
    config = configuration(
        app("web", workers=3, instances=2),
        app("api"),
        db=External(name="db", address="h:1", workers=2),
    )
    assert plan.count_workers(config, Selection()) == 9
    assert plan.count_workers(config, Selection(scale={"web": 1})) == 6
    assert plan.count_workers(config, Selection(names=("db",))) == 2


def test_ports_are_remembered_by_who_holds_them() -> None:
    config = configuration(app("web", upstreams=(to("api"),)), app("api"))
    made = make(config, remembered={"web.1": 20500, "web.1 upstream api": 21500})
    (web,) = made.of("web")
    assert (web.port, web.upstreams[0].port, web.inbound_port) == (20500, 21500, 21000)
    assert make(config, remembered=made.ports).ports == made.ports


def test_names_chosen_bring_what_they_need_in_the_order_of_the_file() -> None:
    config = configuration(
        app("db"),
        app("api", depends_on={"db": Dependency()}),
        app("other"),
        app("web", upstreams=(to("api"),)),
    )
    assert plan.select(config, Selection(names=("web",))) == ("db", "api", "web")
    assert plan.select(config, Selection(names=("web",), dependencies=False)) == ("web",)
    assert plan.select(config, Selection()) == ("db", "api", "other", "web")


def test_a_name_chosen_brings_the_services_that_share_its_requests() -> None:
    shared = replace(to("reviews"), split=(("reviews-v2", 1), ("reviews-v3", 1)))
    names = ("reviews", "reviews-v2", "reviews-v3")
    config = configuration(app("web", upstreams=(shared,)), *map(app, names))
    # `reviews` only lends its name: no request goes there.
    assert plan.select(config, Selection(names=("web",))) == ("web", *names[1:])


def test_each_share_of_the_requests_has_its_identity_and_weight() -> None:
    requests = Requests(retries=3)
    shared = replace(to("api"), split=(("api", 90), ("new", 10)), requests=requests)
    config = configuration(
        app("web", upstreams=(shared, to("new"))),
        app("api", protocol="http"),
        new=External(name="new", address="h:1", protocol="http"),
    )
    split, plain = make(config).of("web")[0].upstreams
    prefix = "spiffe://shop.mesh/ns/default/dc/local/svc"
    assert [(s.service, str(s.identity), s.weight) for s in split.split] == [
        ("api", f"{prefix}/api", 90),
        ("new", f"{prefix}/new", 10),
    ]
    assert (split.service, split.protocol, split.requests) == ("api", "http", requests)
    assert split.called == ("api", "new")
    assert (plain.split, plain.called, plain.requests) == ((), ("new",), Requests())


def test_a_circle_of_upstreams_can_be_chosen() -> None:
    config = configuration(app("a", upstreams=(to("b"),)), app("b", upstreams=(to("a"),)))
    assert plan.select(config, Selection(names=("b",))) == ("a", "b")


@pytest.mark.parametrize("selection", [Selection(names=("wep",)), Selection(scale={"wep": 2})])
def test_a_name_that_is_not_there_is_an_error_that_lists_those_that_are(
    selection: Selection,
) -> None:
    with pytest.raises(MeshrunError, match=r'no app "wep" in mesh\.toml; there are: web'):
        plan.select(configuration(app("web")), selection)


def test_scale_changes_the_number_of_instances() -> None:
    made = make(configuration(app("web")), Selection(scale={"web": 3}))
    assert [i.name for i in made.instances] == ["web.1", "web.2", "web.3"]


def test_the_command_is_expanded_word_by_word_from_the_environment_of_the_instance() -> None:
    web = app("web", command=("serve", "--port=${PORT}", "${WHO}", "$$x", "${NONE:-a b}"))
    (instance,) = make(configuration(web)).instances
    assert instance.argv == ("serve", "--port=20000", "world", "$x", "a b")


def test_a_shell_does_its_own_expanding_and_a_procfile_none() -> None:
    shell = app("a", command=("echo $WHO ${PORT}",), shell=True)
    procfile = app("b", command=("echo", "${WHO}"), expand=False)
    first, second = make(configuration(shell, procfile)).instances
    assert first.argv == ("sh", "-c", "echo $WHO ${PORT}")
    assert second.argv == ("echo", "${WHO}")


def test_env_wins_over_env_file_and_that_over_the_caller() -> None:
    web = app(
        "web",
        env={"B": "app ${PORT} ${A}", "C": "${WHO}"},
        env_file={"A": "file", "B": "file", "WHO": "file"},
    )
    (instance,) = make(configuration(web), caller={**CALLER, "A": "caller"}).instances
    assert instance.environment is not None
    found = {name: instance.environment[name] for name in ("A", "B", "C", "WHO", "PATH")}
    assert found == {"A": "file", "B": "app 20000 file", "C": "file", "WHO": "file", "PATH": "/bin"}


@pytest.mark.parametrize(
    ("cwd", "expected"),
    [
        (None, "/srv/shop"),
        ("sub", "/srv/shop/sub"),
        ("/abs", "/abs"),
        ("${WHO}", "/srv/shop/world"),
    ],
)
def test_it_runs_in_the_folder_of_the_file_or_below(cwd: str | None, expected: str) -> None:
    (instance,) = make(configuration(app("web", cwd=cwd))).instances
    assert instance.cwd == expected


def test_the_path_of_a_probe_is_expanded() -> None:
    web = app("web", ready=Probe(check=HttpCheck("/${WHO}")), alive=Probe(check=TcpCheck()))
    (instance,) = make(configuration(web)).instances
    assert instance.ready == Probe(check=HttpCheck("/world"))
    assert instance.alive == Probe(check=TcpCheck())


def test_words_and_patterns_of_probes_are_expanded() -> None:
    command = Probe(check=ExecCheck(("ask", "${PORT}", "$x")))
    web = app("web", ready=Probe(check=LogCheck("on ${PORT}$")), alive=command)
    (instance,) = make(configuration(web)).instances
    assert instance.ready == Probe(check=LogCheck("on 20000$"))
    assert instance.alive == Probe(check=ExecCheck(("ask", "20000", "$x")))


def test_a_pattern_that_its_variables_make_unusable_is_refused() -> None:
    web = app("web", ready=Probe(check=LogCheck("on ${ODD}")))
    with pytest.raises(MeshrunError, match=r"cannot use apps\.web\.ready\.log: .*'on \('"):
        make(configuration(web), caller={"ODD": "("})


def test_an_external_service_is_an_instance_without_a_program() -> None:
    config = configuration(
        app("web", port=0, upstreams=(to("db"),)),
        db=External(name="db", address="${HOST:-127.0.0.1}:5432"),
    )
    made = make(config)
    (db,) = made.of("db")
    assert (db.app, db.target, db.inbound_port) == (None, ("127.0.0.1", 5432), 21001)
    (web,) = made.of("web")
    assert web.upstreams[0].identity == db.identity
    assert str(db.identity) == "spiffe://shop.mesh/ns/default/dc/local/svc/db"


def test_an_address_in_version_six_is_taken_without_its_brackets() -> None:
    config = configuration(db=External(name="db", address="[::1]:5432"))
    assert make(config).instances[0].target == ("::1", 5432)


@pytest.mark.parametrize("address", ["nowhere", ":1", "h:", "h:0", "h:65536", "h:x"])
def test_an_address_that_is_none_is_an_error_with_its_place(address: str) -> None:
    config = configuration(db=External(name="db", address=address, line=7))
    with pytest.raises(MeshrunError, match=r"cannot use the address of db \(mesh\.toml:7\)"):
        make(config)


def test_a_fixed_port_that_is_taken_is_an_error() -> None:
    config = configuration(app("web", port=8080))
    with pytest.raises(PortTakenError, match=r"port 8080 for web\.1 is in use"):
        plan.make(config, Selection(), {}, lambda _, port: port != 8080, CALLER, None)
