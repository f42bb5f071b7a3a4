"""The sections of mesh.toml, each read into its values: `[mesh]`, apps, services, intentions.

What needs more than one section (names, ports, circles) is in
`meshrun.supervisor.configuration.references`.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

from meshrun.proxy.intentions import Intention
from meshrun.proxy.messages import MOST_CONNECTIONS
from meshrun.supervisor.configuration.depends_on import read_depends_on
from meshrun.supervisor.configuration.hooks import read_hooks
from meshrun.supervisor.configuration.limits import read_limits
from meshrun.supervisor.configuration.model import (
    MOST_INSTANCES,
    App,
    External,
    Mesh,
    PortRange,
    Protocol,
    RestartPolicy,
    Stop,
)
from meshrun.supervisor.configuration.permissions import ACTIONS, EFFECT_KEYS, read_effect
from meshrun.supervisor.configuration.probes import read_alive, read_external_ready, read_ready
from meshrun.supervisor.configuration.schedules import read_every
from meshrun.supervisor.configuration.tables import Table, dotted
from meshrun.supervisor.configuration.toml_positions import KeyPath
from meshrun.supervisor.configuration.upstreams import REQUEST_KEYS, read_upstreams
from meshrun.supervisor.configuration.users import Machine, read_user
from meshrun.supervisor.configuration.values import (
    HIGHEST_PORT,
    UnfitError,
    as_service_name,
    boolean,
    choice,
    duration,
    environment_value,
    idleness,
    integer,
    kind,
    limit,
    port_range,
    quoted,
    service_name,
    signal_named,
    text,
    wait,
    word,
    words,
)
from meshrun.supervisor.configuration.watch import read_watch

__all__ = ["intention_id", "mesh_name", "read_app", "read_intentions", "read_mesh", "read_services"]

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
RESTART_POLICIES: tuple[RestartPolicy, ...] = get_args(RestartPolicy)

MESH_KEYS = (
    *("name", "default_intention", "ports", "app_ports", "leaf_ttl", "state_dir", "procfile"),
    "access_log",
)
APP_KEYS = (
    *("command", "shell", "cwd", "env_file", "env", "port", "protocol", "instances", "workers"),
    *("upstreams", "depends_on", "ready", "alive", "restart", "stop", "connect_timeout"),
    *("max_connections", "idle_timeout", "limits", "user", "tty", "watch", "hooks", "every"),
)
# Where the keys stand that an app is likely to be given by mistake.
UPSTREAM_KEYS = {
    key: f'an upstream: upstreams = [{{ service = "backend", {key} = … }}]' for key in REQUEST_KEYS
}
SERVICE_KEYS = ("address", "protocol", "ready", "workers", "max_connections", "idle_timeout")
NOT_OF_SERVICES = {"alive": "an app: here meshrun runs no process that it could start again"}
INTENTION_KEYS = ("from", "to", *EFFECT_KEYS)

MOST_WORKERS = 64

_SHORTEST_LEAF_TTL = "10s"
_LONGEST_LEAF_TTL = "8760h"
"""Consul's bound for `leaf_cert_ttl`: one year."""


def mesh_name(folder: str) -> str:
    """Return the name that a mesh has after its folder."""
    return as_service_name(folder) or "mesh"


def intention_id(source: str, destination: str) -> str:
    """Return the ID that the file's intention for a pair has, the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"meshrun:intention:{source}:{destination}"))


def read_mesh(top: Table, default_name: str) -> Mesh:
    """Read `[mesh]`; `procfile` is for who reads files."""
    table = top.table("mesh") or Table(top.document, ("mesh",), {})
    table.allow(MESH_KEYS)
    mesh = Mesh(
        name=table.read("name", service_name, default_name),
        default_intention=table.read("default_intention", choice(ACTIONS), "deny"),
        ports=table.read("ports", port_range, PortRange(21000, 21999)),
        app_ports=table.read("app_ports", port_range, PortRange(20000, 20999)),
        leaf_ttl_s=table.read(
            "leaf_ttl", duration(_SHORTEST_LEAF_TTL, _LONGEST_LEAF_TTL), Mesh(name="").leaf_ttl_s
        ),
        state_dir=table.read("state_dir", text, Mesh(name="").state_dir),
        access_log=table.read("access_log", boolean, False),
    )
    if mesh.ports.first <= mesh.app_ports.last and mesh.app_ports.first <= mesh.ports.last:
        key = "app_ports" if "app_ports" in table else "ports"
        table.document.report_value(
            ("mesh", key),
            f"mesh.ports ({mesh.ports}) and mesh.app_ports ({mesh.app_ports}) overlap",
        )
    return mesh


def read_app(
    table: Table,
    base: App | None,
    read_env_file: Callable[[Table], Mapping[str, str]],
    machine: Machine,
) -> App:
    """Read one `[apps.NAME]`; `base` is the same app in the Procfile, if it is there."""
    table.allow(APP_KEYS, elsewhere=UPSTREAM_KEYS)
    name = str(table.path[-1])
    app = base or App(name=name, command=())
    _check_name(table)
    app = replace(_read_command(table, app), line=table.document.key(table.path).line)
    return replace(
        app,
        cwd=table.read("cwd", text, app.cwd),
        env=_read_env(table),
        env_file=read_env_file(table) if "env_file" in table else app.env_file,
        port=table.read("port", integer(0, HIGHEST_PORT), app.port),
        protocol=table.read("protocol", choice(PROTOCOLS), app.protocol),
        instances=table.read("instances", integer(1, MOST_INSTANCES), app.instances),
        workers=_read_workers(table),
        upstreams=read_upstreams(table),
        depends_on=read_depends_on(table),
        ready=read_ready(table),
        alive=read_alive(table),
        restart=_read_restart(table, app.restart),
        every=read_every(table),
        stop=_read_stop(table),
        hooks=read_hooks(table),
        limits=read_limits(table, machine),
        account=read_user(table, machine),
        tty=table.read("tty", boolean, False),
        watch=read_watch(table),
        connect_timeout_s=table.read("connect_timeout", wait, app.connect_timeout_s),
        max_connections=_read_max_connections(table),
        idle_timeout_s=_read_idle_timeout(table),
    )


def _read_workers(table: Table) -> int:
    return table.read("workers", integer(1, MOST_WORKERS), 1)


def _read_max_connections(table: Table) -> int:
    return table.read("max_connections", limit, MOST_CONNECTIONS)


def _read_idle_timeout(table: Table) -> float | None:
    return table.read("idle_timeout", idleness, None)


def _check_name(table: Table) -> None:
    name = table.path[-1]
    try:
        service_name(name)
    except UnfitError as error:
        table.document.report_key(table.path, f"{dotted(table.path)}: a service {error}")


def _read_command(table: Table, app: App) -> App:
    """Read `command` and `shell`; without a command, the Procfile's stays as it is."""
    shell = table.read("shell", boolean, app.shell and "command" not in table)
    if "command" not in table and app.command:
        if not shell:
            table.document.report_value(
                (*table.path, "shell"),
                f"{dotted(table.path)}.shell = false needs a command: "
                "the Procfile's is for a shell",
            )
        return app
    command = table.required("command", _script if shell else words, ())
    found = (table.fitted(w, (*table.path, "command", i), word, "") for i, w in enumerate(command))
    return replace(app, command=tuple(found), shell=shell, expand=not shell)


def _script(value: object) -> tuple[object, ...]:
    if not isinstance(value, str):
        raise UnfitError(f"must be a string where shell = true, not {kind(value)}")
    if not value.strip():
        raise UnfitError("must not be empty")
    return (value,)


def _read_env(table: Table) -> dict[str, str]:
    env = table.table("env", '{ NAME = "value" }')
    result: dict[str, str] = {}
    for name in env.values if env else ():
        if not name or "=" in name or "\0" in name:
            table.document.report_key(
                (*table.path, "env", name), f"{quoted(name)} cannot be the name of a variable"
            )
            continue
        value = env.read(name, environment_value, None) if env else None
        if value is not None:
            result[name] = value
    return result


def _read_restart(table: Table, default: RestartPolicy) -> RestartPolicy:
    restart = table.read("restart", choice(RESTART_POLICIES), None)
    if "every" not in table:
        return restart or default
    if restart not in (None, "never"):
        table.document.report_value(
            (*table.path, "restart"),
            f'{dotted(table.path)}.restart must be "never" with every: '
            "the next time is the next try",
        )
    return "never"


def _read_stop(table: Table) -> Stop:
    stop = table.table("stop", '{ signal = "TERM", timeout = "5s" }')
    if stop is None:
        return Stop()
    stop.allow(("signal", "timeout"))
    return Stop(
        signal=stop.read("signal", signal_named, Stop().signal),
        timeout_s=stop.read("timeout", duration(), Stop().timeout_s),
    )


def read_services(top: Table) -> dict[str, External]:
    """Read every `[services.NAME]`."""
    services: dict[str, External] = {}
    for table in top.tables("services"):
        table.allow(SERVICE_KEYS, elsewhere=NOT_OF_SERVICES)
        _check_name(table)
        name = str(table.path[-1])
        services[name] = External(
            name=name,
            address=table.required("address", text, ""),
            protocol=table.read("protocol", choice(PROTOCOLS), "tcp"),
            ready=read_external_ready(table),
            workers=_read_workers(table),
            max_connections=_read_max_connections(table),
            idle_timeout_s=_read_idle_timeout(table),
            line=table.document.key(table.path).line,
        )
    return services


def read_intentions(top: Table, file_name: str) -> list[tuple[KeyPath, Intention]]:
    """Read every `[[intentions]]` with its path; `file_name` is where a reader would change it."""
    intentions: list[tuple[KeyPath, Intention]] = []
    for index, value in enumerate(top.array("intentions", "[[intentions]]")):
        path: KeyPath = ("intentions", index)
        table = top.nested(value, path, '{ from = "web", to = "backend" }')
        if table is None:
            continue
        table.allow(INTENTION_KEYS)
        source = table.required("from", text, "")
        destination = table.required("to", text, "")
        action, permissions, dry_run = read_effect(table)
        intention = Intention(
            source=source,
            destination=destination,
            action=action,
            permissions=permissions,
            dry_run=dry_run,
            id=intention_id(source, destination),
            origin="file",
            where=f"{file_name}:{table.document.key(path).line}",
        )
        intentions.append((path, intention))
    return intentions
