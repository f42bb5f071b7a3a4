"""What only the whole configuration can tell: names, ports, circles, variables that clash.

Each check reports into the document, at the place of the value that a reader would change.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from meshrun.proxy.intentions import WILDCARD, Intention
from meshrun.supervisor.configuration import interpolation
from meshrun.supervisor.configuration.model import (
    App,
    Condition,
    Configuration,
    ExecCheck,
    HookName,
    Hooks,
    HttpCheck,
    LogCheck,
    NotifyCheck,
    Probe,
    TcpCheck,
    UpstreamReference,
)
from meshrun.supervisor.configuration.permissions import CONDITION_KEYS
from meshrun.supervisor.configuration.probes import kind_of
from meshrun.supervisor.configuration.tables import Document, Place, dotted
from meshrun.supervisor.configuration.toml_positions import KeyPath
from meshrun.supervisor.configuration.upstreams import REQUEST_KEYS
from meshrun.supervisor.configuration.values import HIGHEST_PORT, quoted
from meshrun.supervisor.environment import (
    HOOK_VARIABLES,
    effective,
    notify_variables,
    variable_name,
    variables,
)
from meshrun.supervisor.suggest import hint

__all__ = ["check"]

# A sidecar gets all its listeners in one message, and the kernel passes at most 253 descriptors.
MOST_UPSTREAMS = 200

HOOKS: tuple[HookName, ...] = get_args(HookName)
_AT_THE_END: tuple[Condition, ...] = ("completed", "succeeded")


def check(
    document: Document,
    configuration: Configuration,
    intentions: list[tuple[KeyPath, Intention]],
    environ: Mapping[str, str],
) -> None:
    """Report everything that is wrong between the sections; `environ` is the caller's."""
    _check_names(document, configuration)
    for app in configuration.apps.values():
        _check_upstreams(document, configuration, app)
        _check_depends_on(document, configuration, app)
        _check_probes(document, app)
        _check_limits(document, app)
        _check_environment(document, configuration, app)
        _check_variables(document, configuration, app, environ)
    for external in configuration.services.values():
        path = ("services", external.name, "max_connections")
        _check_limit(document, path, external.max_connections, external.workers)
    _check_circles(document, configuration)
    _check_ports(document, configuration)
    _check_intentions(document, configuration, intentions)


def _services(configuration: Configuration) -> list[str]:
    return [*configuration.apps, *configuration.services]


def _check_names(document: Document, configuration: Configuration) -> None:
    for name in configuration.services:
        if name in configuration.apps:
            document.report_key(
                ("services", name),
                f"services.{name} has the name of an app ({document.key(('apps', name))})",
            )


def _unknown(service: str, configuration: Configuration) -> str:
    known = _services(configuration)
    return f"no app or service is called {quoted(service)}{hint(service, known)}"


def _check_upstreams(document: Document, configuration: Configuration, app: App) -> None:
    if len(app.upstreams) > MOST_UPSTREAMS:
        all_of_them = ("apps", app.name, "upstreams")
        document.report_value(
            all_of_them,
            f"{dotted(all_of_them)} has {len(app.upstreams)} entries, over {MOST_UPSTREAMS}",
        )
    by_variable: dict[str, int] = {}
    for index, upstream in enumerate(app.upstreams):
        path = ("apps", app.name, "upstreams", index)
        if upstream.service and _takes_calls(
            configuration, upstream.service, (*path, "service"), document.report_value
        ):
            _check_request_keys(document, configuration, upstream, path)
        if not upstream.name:
            continue
        name = variable_name(upstream.name)
        first = by_variable.setdefault(name, index)
        if first != index:
            other = app.upstreams[first].name
            document.report_value(
                (*path, "as"),
                f"the upstreams {quoted(other)} and {quoted(upstream.name)} of {app.name} both "
                f'make UPSTREAM_{name}_ADDR: give one another name with "as"',
            )


def _takes_calls(
    configuration: Configuration,
    service: str,
    path: KeyPath,
    report: Callable[[KeyPath, str], None],
) -> bool:
    """Tell whether a service that is named at `path` can be called, and report if not."""
    app = configuration.apps.get(service)
    if app is None and service not in configuration.services:
        report(path, _unknown(service, configuration))
        return False
    if app is not None and app.port == 0:
        report(path, f"{service} takes no calls: apps.{service}.port is 0")
        return False
    return True


def _check_request_keys(
    document: Document, configuration: Configuration, upstream: UpstreamReference, path: KeyPath
) -> None:
    """Report what is said of requests where there are none, and services that cannot share them."""
    protocol = configuration.protocol(upstream.service)
    if protocol == "tcp":
        for key in REQUEST_KEYS:
            if (*path, key) in document.positions:
                document.report_key(
                    (*path, key),
                    f'{dotted((*path, key))} needs protocol = "http", "http2" or "grpc" in '
                    f"{_section(configuration, upstream.service)}: tcp has no requests",
                )
        return
    for service, _ in upstream.split:
        at_service = (*path, "split", service)
        if not _takes_calls(configuration, service, at_service, document.report_key):
            continue
        other = configuration.protocol(service)
        if other != protocol:
            document.report_key(
                at_service,
                f"{service} cannot share the requests to {upstream.service}, whose protocol is "
                f'"{protocol}": {_section(configuration, service)}.protocol is "{other}"',
            )


def _section(configuration: Configuration, service: str) -> str:
    return f"{'apps' if service in configuration.apps else 'services'}.{service}"


def _check_depends_on(document: Document, configuration: Configuration, app: App) -> None:
    for name, dependency in app.depends_on.items():
        path: KeyPath = ("apps", app.name, "depends_on", name)
        condition = dependency.condition
        if name == app.name:
            document.report_value(path, f"{name} cannot depend on itself")
        elif name in configuration.services:
            if condition in _AT_THE_END:
                document.report_value(
                    (*path, "condition"),
                    f"{name} is an external service, which never counts as {condition}: "
                    'use "started" or "ready"',
                )
            if dependency.on_restart != "ignore":
                document.report_value(
                    (*path, "on_restart"),
                    f"{name} is an external service: meshrun does not see it start again",
                )
        elif name not in configuration.apps:
            document.report_value(path, _unknown(name, configuration))
        elif configuration.apps[name].every is not None:
            document.report_value(
                path,
                f"{name} runs at times, and cannot be waited for: apps.{name}.every is set",
            )
        elif configuration.apps[name].restart == "always" and condition in _AT_THE_END:
            document.report_value(
                (*path, "condition"),
                f'{name} is never {condition}: apps.{name}.restart is "always"',
            )


def _probes(app: App) -> Iterator[tuple[KeyPath, Probe]]:
    """Return the probes of an app, each with the path of its check."""
    for key, probe in (("ready", app.ready), ("alive", app.alive)):
        if probe is not None:
            yield ("apps", app.name, key, kind_of(probe.check)), probe


def _check_probes(document: Document, app: App) -> None:
    for path, probe in _probes(app):
        if app.port == 0 and isinstance(probe.check, HttpCheck | TcpCheck):
            document.report_value(
                path, f"{app.name} has no port to probe: apps.{app.name}.port is 0"
            )


def _check_limits(document: Document, app: App) -> None:
    path: KeyPath = ("apps", app.name)
    _check_limit(document, (*path, "max_connections"), app.max_connections, app.workers)
    for index, upstream in enumerate(app.upstreams):
        for key, most in (
            ("max_connections", upstream.max_connections),
            ("max_requests", upstream.requests.most_in_flight),
            ("max_pending", upstream.requests.most_pending),
        ):
            _check_limit(document, (*path, "upstreams", index, key), most, app.workers)


def _check_limit(document: Document, path: KeyPath, most: int, workers: int) -> None:
    """Report a limit of which some worker would have no part, and so refuse everything."""
    if most < workers:
        document.report_value(
            path,
            f"{dotted(path)} must be at least {workers}, one for each worker, not {most}",
        )


def _check_circles(document: Document, configuration: Configuration) -> None:
    """Report each circle of `depends_on` once, where it closes."""
    finished: set[str] = set()
    for start in configuration.apps:
        trail: list[str] = []
        pending = [iter([start])]
        while pending:
            name = next(pending[-1], None)
            if name is None:
                pending.pop()
                if trail:
                    finished.add(trail.pop())
            elif name in trail:
                circle = [*trail[trail.index(name) :], name]
                if len(circle) > 2:  # a dependency on oneself has its own words
                    document.report_value(
                        ("apps", trail[-1], "depends_on", name),
                        f"depends_on goes in a circle: {' -> '.join(circle)}",
                    )
            elif name not in finished and name in configuration.apps:
                trail.append(name)
                pending.append(iter(configuration.apps[name].depends_on))


@dataclass(frozen=True, slots=True)
class _Claim:
    """A range of ports that instances of an app need, and the path of the number that says so."""

    first: int
    last: int
    owner: str
    path: KeyPath
    place: Place

    def __str__(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.owner} ({ports}, {self.place})"


def _claims(document: Document, configuration: Configuration) -> Iterator[_Claim]:
    for app in configuration.apps.values():
        if app.port:
            path: KeyPath = ("apps", app.name, "port")
            last = app.port + app.instances - 1
            yield _Claim(app.port, last, dotted(path), path, document.value(path))
        for index, upstream in enumerate(app.upstreams):
            if upstream.port is not None:
                path = ("apps", app.name, "upstreams", index, "port")
                last = upstream.port + app.instances - 1
                yield _Claim(upstream.port, last, dotted(path), path, document.value(path))


def _check_ports(document: Document, configuration: Configuration) -> None:
    """Report ports that two things need, each pair once, and those beyond the last port."""
    earlier: list[_Claim] = []
    for claim in _claims(document, configuration):
        if claim.last > HIGHEST_PORT:
            document.report_value(
                claim.path,
                f"{claim.owner} leaves no port for every instance: "
                f"the last would get {claim.last}, over {HIGHEST_PORT}",
            )
        for other in earlier:
            if claim.first <= other.last and other.first <= claim.last:
                shared = max(claim.first, other.first)
                document.report_value(
                    claim.path, f"port {shared} is needed twice: by {other} and by {claim}"
                )
        earlier.append(claim)


def _check_environment(document: Document, configuration: Configuration, app: App) -> None:
    reserved = {"PORT", *_injected_variables(configuration, app)}
    notifying = {path[2] for path, probe in _probes(app) if isinstance(probe.check, NotifyCheck)}
    if notifying:
        reserved |= notify_variables("", 0.0 if "alive" in notifying else None).keys()
    if app.hooks != Hooks():
        reserved |= set(HOOK_VARIABLES)
    for name in app.env:
        if name in reserved:
            document.report_key(
                ("apps", app.name, "env", name), f"{name} is set by meshrun: use another name"
            )


def _injected_variables(configuration: Configuration, app: App) -> dict[str, str]:
    upstreams = [
        (u.name, configuration.protocol(u.service) or "tcp") for u in app.upstreams if u.name
    ]
    return variables(upstreams, has_port=app.port != 0)


def _expanded_texts(app: App) -> Iterator[tuple[KeyPath, str]]:
    """Return what is expanded for each instance, with its path."""
    path: KeyPath = ("apps", app.name)
    if app.expand:
        for index, word in enumerate(app.command):
            yield (*path, "command", index), word
    if app.cwd is not None:
        yield (*path, "cwd"), app.cwd
    for name, value in app.env.items():
        yield (*path, "env", name), value
    for at, probe in _probes(app):
        match probe.check:
            case HttpCheck(path=text) | LogCheck(pattern=text):
                yield at, text
            case ExecCheck(command=command):
                yield from (((*at, index), word) for index, word in enumerate(command))
            case _:
                pass
    for hook in HOOKS:
        for index, word in enumerate(app.hooks.of(hook)):
            yield (*path, "hooks", hook, index), word


def _check_variables(
    document: Document, configuration: Configuration, app: App, environ: Mapping[str, str]
) -> None:
    account = {} if app.account is None else app.account.variables
    lookup = effective(
        {**environ, **account}, app.env_file, {}, _injected_variables(configuration, app)
    )
    for path, text in _expanded_texts(app):
        for name in interpolation.unset(text, lookup):
            document.report_value(
                path, f"${{{name}}} is not set and has no default{_why_unset(name, app, lookup)}"
            )


def _why_unset(name: str, app: App, lookup: Mapping[str, str]) -> str:
    if name == "PORT":
        return f": apps.{app.name}.port is 0"
    if name in app.env:
        return ": the variables of env do not see each other"
    if name.endswith("_URL") and f"{name[:-4]}_ADDR" in lookup:
        return ': an upstream has a URL only with protocol "http", "http2" or "grpc"'
    return hint(name, lookup)


def _check_intentions(
    document: Document,
    configuration: Configuration,
    intentions: list[tuple[KeyPath, Intention]],
) -> None:
    known = (WILDCARD, *_services(configuration))
    first: dict[tuple[str, str], KeyPath] = {}
    for path, intention in intentions:
        for key, name in (("from", intention.source), ("to", intention.destination)):
            if name and name not in known:
                document.report_value((*path, key), _unknown(name, configuration))
        if intention.permissions:
            _check_requests(document, configuration, path, intention.destination)
        if not all(intention.pair):
            continue
        other = first.setdefault(intention.pair, path)
        if other != path:
            document.report_key(
                path,
                f"{intention.source} => {intention.destination} has an intention on line "
                f"{document.key(other).line} already, and again on line {document.key(path).line}",
            )


def _check_requests(
    document: Document, configuration: Configuration, path: KeyPath, destination: str
) -> None:
    """Report permissions towards what they cannot be about."""
    first = next(k for k in ("permissions", *CONDITION_KEYS) if (*path, k) in document.positions)
    at = (*path, first)
    if destination == WILDCARD:
        document.report_key(
            at, f'{dotted(at)} needs one service in "to": not all of "*" need speak HTTP'
        )
    elif configuration.protocol(destination) == "tcp":
        section = "apps" if destination in configuration.apps else "services"
        document.report_key(
            at,
            f"{dotted(at)} is about HTTP requests, and {destination} is a tcp service: "
            f'give {dotted((section, destination))} protocol = "http" (or "http2", "grpc")',
        )
