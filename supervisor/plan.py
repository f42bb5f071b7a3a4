"""What a run will consist of: every instance with its ports, addresses and environment.

Pure: the same configuration, selection, remembered ports and claims give the same plan.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from meshrun.proxy.messages import Requests
from meshrun.proxy.regex import RegexError, search
from meshrun.proxy.spiffe import SpiffeId
from meshrun.supervisor import environment, ports
from meshrun.supervisor.configuration import interpolation
from meshrun.supervisor.configuration.model import (
    App,
    Configuration,
    ExecCheck,
    External,
    Hooks,
    HttpCheck,
    LogCheck,
    Probe,
    Protocol,
    UpstreamReference,
)
from meshrun.supervisor.ends import EndRule
from meshrun.supervisor.environment import UpstreamAddress
from meshrun.supervisor.errors import MeshrunError

__all__ = [
    "HOST",
    "Instance",
    "Plan",
    "PlannedShare",
    "PlannedUpstream",
    "Selection",
    "Worker",
    "count_instances",
    "count_workers",
    "held",
    "injected_into",
    "instance_name",
    "make",
    "outbound_only",
    "scaled",
    "select",
]

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What of a configuration is to run, and how many of each; `isolated` ignores fixed ports.

    An app with whose end the run ends (`ends`) is not started again.
    """

    names: tuple[str, ...] = ()
    dependencies: bool = True
    scale: Mapping[str, int] | None = None
    isolated: bool = False
    ends: EndRule = field(default_factory=EndRule)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShare:
    """A service that takes `weight` parts of the requests to an upstream."""

    service: str
    identity: SpiffeId
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedUpstream:
    """A local address at which an instance reaches a service, or those that `split` names."""

    name: str
    service: str
    identity: SpiffeId
    port: int
    protocol: Protocol
    connect_timeout_s: float
    max_connections: int
    requests: Requests
    idle_timeout_s: float | None = None
    split: tuple[PlannedShare, ...] = ()

    @property
    def called(self) -> tuple[str, ...]:
        """The services that the calls go to."""
        return tuple(share.service for share in self.split) or (self.service,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance of an app, or the one of an external service (then `app` is None).

    `port` is where the app listens, `inbound_port` where its sidecar does; both are None for an app
    that takes no calls. `target` is where the sidecar finds the app. `workers` is how many
    processes the sidecar has, `max_connections` how many connections the app gets through it at the
    same time, `idle_timeout_s` when one on which nothing moves is cut.
    """

    name: str
    number: int
    service: str
    protocol: Protocol
    identity: SpiffeId
    app: App | None
    port: int | None
    inbound_port: int | None
    target: tuple[str, int] | None
    upstreams: tuple[PlannedUpstream, ...]
    connect_timeout_s: float
    max_connections: int
    idle_timeout_s: float | None = None
    workers: int = 1
    argv: tuple[str, ...] = ()
    cwd: str = ""
    environment: Mapping[str, str] | None = None
    ready: Probe | None = None
    alive: Probe | None = None
    hooks: Hooks = field(default_factory=Hooks)

    @property
    def sidecar(self) -> tuple["Worker", ...]:
        """The processes of its sidecar."""
        return tuple(Worker(self, number) for number in range(1, self.workers + 1))


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of the sidecar of an instance; numbers begin with 1."""

    instance: Instance
    number: int

    @property
    def name(self) -> str:
        """The instance's name, with a number where the sidecar has several workers: `web.1/2`."""
        name = self.instance.name
        return name if self.instance.workers == 1 else f"{name}/{self.number}"

    @property
    def title(self) -> str:
        """What messages call it."""
        sidecar = f"sidecar of {self.instance.name}"
        return sidecar if self.instance.workers == 1 else f"worker {self.number} of the {sidecar}"

    def part(self, limit: int) -> int:
        """Return its part of a limit of the sidecar; the parts add up to the limit."""
        workers = self.instance.workers
        return (limit + workers - self.number) // workers


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole run; `ports` is what to remember for the next one.

    While a run changes, its plan has what runs: also what is still to go, and of what is still to
    be restarted the instance as it was.
    """

    configuration: Configuration
    instances: tuple[Instance, ...]
    ports: Mapping[str, int]

    @cached_property
    def by_name(self) -> Mapping[str, Instance]:
        """The instances by their names."""
        return {instance.name: instance for instance in self.instances}

    def having(self, instance: Instance) -> "Plan":
        """Return the plan with an instance, in place of the one of its name, or as the last."""
        instances = {**self.by_name, instance.name: instance}
        return replace(self, instances=tuple(instances.values()))

    def without(self, name: str) -> "Plan":
        """Return the plan without an instance."""
        return replace(self, instances=tuple(i for i in self.instances if i.name != name))

    def ordered_as(self, other: "Plan") -> "Plan":
        """Return the plan with its instances in the order of another one; those left over last."""
        place = {instance.name: index for index, instance in enumerate(other.instances)}
        in_order = sorted(self.instances, key=lambda i: place.get(i.name, len(place)))
        return replace(self, instances=tuple(in_order))

    def of(self, service: str) -> tuple[Instance, ...]:
        """Return the instances of a service."""
        return tuple(i for i in self.instances if i.service == service)

    @property
    def services(self) -> tuple[str, ...]:
        """The services in the order of the file."""
        return tuple(dict.fromkeys(i.service for i in self.instances))


def instance_name(service: str, number: int) -> str:
    """Return `web.1` for the first instance of `web`."""
    return f"{service}.{number}"


def select(configuration: Configuration, selection: Selection) -> tuple[str, ...]:
    """Return the services to run, in the order of the file: those named and what they need.

    Raises MeshrunError for a name that is not there.
    """
    known = [*configuration.apps, *configuration.services]
    wanted: set[str] = set()
    queue = list(selection.names or known)
    for name in (*queue, *(selection.scale or {})):
        if name not in known:
            raise MeshrunError(
                f'no app "{name}" in {configuration.file}; there are: {", ".join(known)}'
            )
    while queue:
        name = queue.pop()
        if name in wanted:
            continue
        wanted.add(name)
        app = configuration.apps.get(name)
        if app is not None and selection.dependencies:
            queue.extend(app.depends_on)
            queue.extend(service for upstream in app.upstreams for service in upstream.called)
    return tuple(name for name in known if name in wanted)


def make(
    configuration: Configuration,
    selection: Selection,
    remembered: Mapping[str, int],
    claim: ports.Claim,
    caller: Mapping[str, str],
    run_id: str | None,
) -> Plan:
    """Make the plan; `caller` is the environment of whoever started the run.

    Raises MeshrunError for an unknown name, PortTakenError, PortsExhaustedError.
    """
    chosen = select(configuration, selection)
    apps = scaled(configuration, selection, chosen)
    externals = [e for name, e in configuration.services.items() if name in chosen]
    wishes = list(_wishes(configuration, apps.values(), externals, isolated=selection.isolated))
    given = ports.allocate(wishes, remembered, claim)
    instances = [
        _app_instance(configuration, app, number, given, caller, run_id)
        for app in apps.values()
        for number in range(1, app.instances + 1)
    ]
    instances += [_external_instance(configuration, e, given, caller) for e in externals]
    return Plan(configuration=configuration, instances=tuple(instances), ports=given)


def scaled(
    configuration: Configuration, selection: Selection, chosen: Collection[str]
) -> dict[str, App]:
    """Return the apps of `chosen` as the selection has them."""
    scale = selection.scale or {}
    return {
        name: replace(
            app,
            instances=scale.get(name, app.instances),
            restart="never" if selection.ends.runs_once(name) else app.restart,
        )
        for name, app in configuration.apps.items()
        if name in chosen
    }


def count_instances(configuration: Configuration, selection: Selection) -> int:
    """Return how many instances a plan will have. Raises MeshrunError for an unknown name."""
    chosen = select(configuration, selection)
    apps = scaled(configuration, selection, chosen)
    return len(chosen) - len(apps) + sum(app.instances for app in apps.values())


def count_workers(configuration: Configuration, selection: Selection) -> int:
    """Return how many workers all sidecars of a plan will have. Raises as `count_instances`."""
    chosen = select(configuration, selection)
    apps = scaled(configuration, selection, chosen)
    externals = [e for name, e in configuration.services.items() if name in chosen]
    return sum(a.instances * a.workers for a in apps.values()) + sum(e.workers for e in externals)


def _wishes(
    configuration: Configuration,
    apps: Iterable[App],
    externals: Iterable[External],
    *,
    isolated: bool,
) -> Iterator[ports.Wish]:
    mesh = configuration.mesh
    numbered = [(app, number) for app in apps for number in range(1, app.instances + 1)]
    for app, number in numbered:
        if app.port != 0:
            fixed = None if isolated or app.port is None else app.port + number - 1
            name = instance_name(app.name, number)
            yield ports.Wish(_app_holder(name), mesh.app_ports, fixed, "app")
    for app, number in numbered:
        for upstream in app.upstreams:
            fixed = None if isolated or upstream.port is None else upstream.port + number - 1
            holder = _upstream_holder(instance_name(app.name, number), upstream.name)
            yield ports.Wish(holder, mesh.ports, fixed)
    for app, number in numbered:
        if app.port != 0:
            yield ports.Wish(_inbound_holder(instance_name(app.name, number)), mesh.ports)
    for external in externals:
        yield ports.Wish(_inbound_holder(instance_name(external.name, 1)), mesh.ports)


def held(instances: Iterable[Instance]) -> dict[str, int]:
    """Return which port of this machine each holder has: for the app, its sidecar, an upstream."""
    ports_held: dict[str, int] = {}
    for instance in instances:
        if instance.app is not None and instance.port is not None:
            ports_held[_app_holder(instance.name)] = instance.port
        if instance.inbound_port is not None:
            ports_held[_inbound_holder(instance.name)] = instance.inbound_port
        for upstream in instance.upstreams:
            ports_held[_upstream_holder(instance.name, upstream.name)] = upstream.port
    return ports_held


def _app_holder(instance: str) -> str:
    return instance


def _inbound_holder(instance: str) -> str:
    return f"{instance} inbound"


def _upstream_holder(instance: str, upstream: str) -> str:
    return f"{instance} upstream {upstream}"


def _app_instance(
    configuration: Configuration,
    app: App,
    number: int,
    given: Mapping[str, int],
    caller: Mapping[str, str],
    run_id: str | None,
) -> Instance:
    name = instance_name(app.name, number)
    caller = caller if app.account is None else {**caller, **app.account.variables}
    port = given.get(_app_holder(name))
    upstream_ports = {u.name: given[_upstream_holder(name, u.name)] for u in app.upstreams}
    outbound = outbound_only(configuration, app, name, number, upstream_ports)
    injected = injected_into(outbound, port, run_id)
    lookup = environment.effective(caller, app.env_file, {}, injected)
    env = {name: interpolation.expand(value, lookup) for name, value in app.env.items()}
    return replace(
        outbound,
        port=port,
        inbound_port=given.get(_inbound_holder(name)),
        target=(HOST, port) if port else None,
        idle_timeout_s=app.idle_timeout_s,
        workers=app.workers,
        argv=_argv(app, lookup),
        cwd=str(_folder(configuration.folder, app, lookup)),
        environment=environment.effective(caller, app.env_file, env, injected, terminal=app.tty),
        ready=_probe(app.ready, lookup, f"apps.{app.name}.ready"),
        alive=_probe(app.alive, lookup, f"apps.{app.name}.alive"),
        hooks=_hooks(app.hooks, lookup),
    )


def outbound_only(
    configuration: Configuration,
    app: App,
    name: str,
    number: int,
    upstream_ports: Mapping[str, int],
) -> Instance:
    """Return an instance of `app` that has only its outbound side: it takes no calls, runs nothing.

    `upstream_ports` has the port of each upstream, by its name.
    """
    return Instance(
        name=name,
        number=number,
        service=app.name,
        protocol=app.protocol,
        identity=SpiffeId.for_service(configuration.mesh.trust_domain, app.name),
        app=app,
        port=None,
        inbound_port=None,
        target=None,
        upstreams=tuple(
            _planned_upstream(configuration, u, upstream_ports[u.name]) for u in app.upstreams
        ),
        connect_timeout_s=app.connect_timeout_s,
        max_connections=app.max_connections,
    )


def injected_into(instance: Instance, port: int | None, run_id: str | None) -> dict[str, str]:
    """Return what meshrun tells `instance`, whose app listens at `port`; see `environment`."""
    return environment.injected(
        app=instance.service,
        instance=instance.name,
        identity=str(instance.identity),
        run_id=run_id,
        port=port,
        upstreams=[UpstreamAddress(u.name, HOST, u.port, u.protocol) for u in instance.upstreams],
    )


def _planned_upstream(
    configuration: Configuration, reference: UpstreamReference, port: int
) -> PlannedUpstream:
    """Return an upstream of an app at the port that it was given."""
    service = reference.service
    target = configuration.apps.get(service) or configuration.services[service]
    trust_domain = configuration.mesh.trust_domain
    return PlannedUpstream(
        name=reference.name,
        service=service,
        identity=SpiffeId.for_service(trust_domain, service),
        port=port,
        protocol=target.protocol,
        connect_timeout_s=reference.connect_timeout_s,
        max_connections=reference.max_connections,
        idle_timeout_s=reference.idle_timeout_s,
        requests=reference.requests,
        split=tuple(
            PlannedShare(
                service=share,
                identity=SpiffeId.for_service(trust_domain, share),
                weight=weight,
            )
            for share, weight in reference.split
        ),
    )


def _argv(app: App, lookup: Mapping[str, str]) -> tuple[str, ...]:
    if app.shell:
        return ("sh", "-c", *app.command)
    if not app.expand:
        return app.command
    return tuple(interpolation.expand(word, lookup) for word in app.command)


def _folder(base: Path, app: App, lookup: Mapping[str, str]) -> Path:
    if app.cwd is None:
        return base
    return base / Path(interpolation.expand(app.cwd, lookup)).expanduser()


def _probe(probe: Probe | None, lookup: Mapping[str, str], key: str) -> Probe | None:
    if probe is None:
        return None
    match probe.check:
        case HttpCheck(path=path):
            return replace(probe, check=HttpCheck(interpolation.expand(path, lookup)))
        case ExecCheck(command=command):
            words = tuple(interpolation.expand(word, lookup) for word in command)
            return replace(probe, check=ExecCheck(words))
        case LogCheck(pattern=written):
            pattern = interpolation.expand(written, lookup)
            try:
                search(pattern)
            except RegexError as error:
                raise MeshrunError(
                    f"cannot use {key}.log: with its variables it is {pattern!r}, "
                    f"no regular expression of RE2: {error}"
                ) from error
            return replace(probe, check=LogCheck(pattern))
        case _:
            return probe


def _hooks(hooks: Hooks, lookup: Mapping[str, str]) -> Hooks:
    return replace(
        hooks,
        on_ready=tuple(interpolation.expand(word, lookup) for word in hooks.on_ready),
        on_exit=tuple(interpolation.expand(word, lookup) for word in hooks.on_exit),
    )


def _external_instance(
    configuration: Configuration,
    external: External,
    given: Mapping[str, int],
    caller: Mapping[str, str],
) -> Instance:
    name = instance_name(external.name, 1)
    address = interpolation.expand(external.address, caller)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise MeshrunError(
            f"cannot use the address of {external.name} ({configuration.file}:{external.line}): "
            f'"{address}" is not host:port'
        )
    return Instance(
        name=name,
        number=1,
        service=external.name,
        protocol=external.protocol,
        identity=SpiffeId.for_service(configuration.mesh.trust_domain, external.name),
        app=None,
        port=int(port),
        inbound_port=given[_inbound_holder(name)],
        target=(host.strip("[]"), int(port)),
        upstreams=(),
        connect_timeout_s=5.0,
        max_connections=external.max_connections,
        idle_timeout_s=external.idle_timeout_s,
        workers=external.workers,
        ready=_probe(external.ready, caller, f"services.{external.name}.ready"),
    )
