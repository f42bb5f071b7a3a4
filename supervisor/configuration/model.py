"""What a mesh.toml or a Procfile says, checked, as values.

Strings that may hold `${NAME}` are kept as written: they are expanded for one instance at a time,
when its ports are known (`meshrun.supervisor.plan`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Literal

from meshrun.proxy.intentions import Action, Intention
from meshrun.proxy.messages import MOST_CONNECTIONS, Protocol, Requests

__all__ = [
    "MOST_INSTANCES",
    "SERVICE_NAME",
    "Account",
    "App",
    "Check",
    "Condition",
    "Configuration",
    "Cron",
    "Dependency",
    "ExecCheck",
    "External",
    "HookName",
    "Hooks",
    "HttpCheck",
    "Interval",
    "Limits",
    "LogCheck",
    "Mesh",
    "NotifyCheck",
    "OnRestart",
    "PortRange",
    "Probe",
    "Protocol",
    "RestartPolicy",
    "Schedule",
    "Stop",
    "TcpCheck",
    "UpstreamReference",
    "Watch",
    "Watched",
]

# As a label of the DNS (RFC 1123 2.1), in lower case.
SERVICE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)

# Of one app, in the file and by `scale`.
MOST_INSTANCES = 100

RestartPolicy = Literal["on-failure", "always", "never"]
Condition = Literal["started", "ready", "completed", "succeeded"]
OnRestart = Literal["ignore", "restart"]
HookName = Literal["on_ready", "on_exit"]


@dataclass(frozen=True, slots=True)
class PortRange:
    """First and last port, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """Well when the app's port accepts a connection."""


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """Well when `GET path` at the app's port answers 200 to 399."""

    path: str


@dataclass(frozen=True, slots=True)
class ExecCheck:
    """Well when a command, run as the app is, ends with exit code 0."""

    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogCheck:
    """Well when the app writes a line in which `pattern`, an expression of RE2, is found."""

    pattern: str


@dataclass(frozen=True, slots=True)
class NotifyCheck:
    """Well when the app says so, as sd_notify(3) does."""


Check = HttpCheck | TcpCheck | ExecCheck | LogCheck | NotifyCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What says that an instance is well, how often it is asked, and what counts as an answer.

    `interval_s` is the pause once it has been well; before, it is asked more often, for
    `deadline_s` at most. It takes `failures` in a row to be ill, and `successes` to be well.
    """

    check: Check
    interval_s: float = 10.0
    timeout_s: float = 1.0
    failures: int = 3
    successes: int = 1
    deadline_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """What an app waits for before it starts; `on_restart` is what a restart of that does to it."""

    condition: Condition = "ready"
    on_restart: OnRestart = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """How an instance is asked to stop, and how long it may take before it is killed."""

    signal: Signals = SIGTERM
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Commands, as words, beside an instance: when it is ready, and when it has ended.

    One that has no words is none. After `timeout_s` one is killed.
    """

    on_ready: tuple[str, ...] = ()
    on_exit: tuple[str, ...] = ()
    timeout_s: float = 10.0

    def of(self, name: HookName) -> tuple[str, ...]:
        """Return the words of one."""
        return self.on_ready if name == "on_ready" else self.on_exit


@dataclass(frozen=True, slots=True)
class Interval:
    """So long from the start of one run to the start of the next."""

    length_s: float


@dataclass(frozen=True, slots=True)
class Cron:
    """At the times of an expression of crontab(5), in local time."""

    expression: str


Schedule = Interval | Cron


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an app may use of the machine; None is no limit of its own.

    `nofile` is how many files a process of it may have open, `processes` how many processes it may
    have, `cpu_nice` the value of setpriority(2).
    """

    memory_bytes: int | None = None
    nofile: int | None = None
    processes: int | None = None
    core_bytes: int | None = None
    cpu_nice: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of this machine whom an app runs as; `groups` are all of its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @property
    def variables(self) -> dict[str, str]:
        """What the environment says of a user, as login(1) sets it."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A file, or a folder with all that is in it; with `pattern` the files there that match it.

    `base` is relative to the folder in which the app runs; a pattern has a part for each folder on
    the way to the file, `**` for any number of them.
    """

    base: str
    pattern: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join((self.base, *self.pattern))


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Which files of an app are watched; when they change it gets `signal`, or is restarted.

    A pattern in `ignore` is about a name at any depth; one that begins with `/` is about a path
    from the folder in which the app runs. Changes count once none has come for `debounce_s`.
    """

    paths: tuple[Watched, ...] = (Watched(base="."),)
    ignore: tuple[str, ...] = ()
    debounce_s: float = 0.3
    signal: Signals | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamReference:
    """A service that an app calls under `name`; instance k listens on `port` + k - 1 if given.

    `max_connections` is how many connections to it an instance may have at the same time; one on
    which nothing moves for `idle_timeout_s` is cut. `split` are the services that share the
    requests, each with its weight; where it is empty `service` takes them all.
    """

    service: str
    name: str
    port: int | None = None
    connect_timeout_s: float = 5.0
    max_connections: int = MOST_CONNECTIONS
    idle_timeout_s: float | None = None
    requests: Requests = field(default_factory=Requests)
    split: tuple[tuple[str, int], ...] = ()

    @property
    def called(self) -> tuple[str, ...]:
        """The services that the calls go to."""
        return tuple(service for service, _ in self.split) or (self.service,)


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """One `[apps.NAME]` or one line of a Procfile.

    `command` is the list of words to execute, or with `shell` the one string for `sh -c`.
    `expand` says whether `${NAME}` is expanded in the command; a shell does its own expanding.
    With `every` it is run at times instead of kept running, and `restart` is "never".
    `port` is None to have one allocated, 0 for an app that takes no calls. `workers` is how many
    processes the sidecar of each instance has, `max_connections` how many connections an instance
    may get through it at the same time, `idle_timeout_s` when one on which nothing moves is cut.
    `tty` is whether it writes to a terminal.
    """

    name: str
    command: tuple[str, ...]
    shell: bool = False
    expand: bool = True
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    env_file: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    protocol: Protocol = "tcp"
    instances: int = 1
    workers: int = 1
    upstreams: tuple[UpstreamReference, ...] = ()
    depends_on: Mapping[str, Dependency] = field(default_factory=dict)
    ready: Probe | None = None
    alive: Probe | None = None
    restart: RestartPolicy = "on-failure"
    every: Schedule | None = None
    stop: Stop = Stop()
    hooks: Hooks = Hooks()
    limits: Limits = Limits()
    account: Account | None = None
    tty: bool = False
    watch: Watch | None = None
    connect_timeout_s: float = 5.0
    max_connections: int = MOST_CONNECTIONS
    idle_timeout_s: float | None = None
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """One `[services.NAME]`: an address that meshrun does not run, behind a sidecar of its own."""

    name: str
    address: str
    protocol: Protocol = "tcp"
    ready: Probe | None = None
    workers: int = 1
    max_connections: int = MOST_CONNECTIONS
    idle_timeout_s: float | None = None
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The `[mesh]` table; `access_log` is whether each request and connection is logged."""

    name: str
    default_intention: Action = "deny"
    ports: PortRange = PortRange(21000, 21999)
    app_ports: PortRange = PortRange(20000, 20999)
    leaf_ttl_s: float = 86400.0
    state_dir: str = ".meshrun"
    access_log: bool = False

    @property
    def trust_domain(self) -> str:
        """The SPIFFE trust domain of this mesh."""
        return f"{self.name}.mesh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A whole configuration; messages call it `file`, and its paths are relative to `folder`."""

    file: str
    folder: Path
    mesh: Mesh
    apps: Mapping[str, App]
    services: Mapping[str, External]
    intentions: tuple[Intention, ...]

    def protocol(self, service: str) -> Protocol | None:
        """Return what a service speaks, None where no app or service has that name."""
        found = self.apps.get(service) or self.services.get(service)
        return found.protocol if found else None
