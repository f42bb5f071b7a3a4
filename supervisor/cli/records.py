"""What the API of a running mesh answers, as the commands read it; fields not named are ignored."""

from collections.abc import Mapping

import msgspec

from meshrun.proxy.intentions import Action, Protocol

__all__ = [
    "Check",
    "Done",
    "Event",
    "Explanation",
    "InstanceRow",
    "Leaf",
    "OneOff",
    "Outcome",
    "Root",
    "RunInfo",
    "Stopping",
    "Verdict",
]


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A run; `started_at` in wall-clock seconds. `protocols` has that of each service."""

    run_id: str
    pid: int
    mesh: str
    file: str
    folder: str
    trust_domain: str
    default_intention: Action
    started_at: float
    state_dir: str
    isolated: bool = False
    protocols: Mapping[str, Protocol] = {}


class InstanceRow(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one instance and its sidecar: a row of `ps`.

    `sidecar_pid` is of the sidecar's first worker, `sidecar_pids` are of all that live.
    `next_run_at`, of one that has a schedule, is in wall-clock seconds.
    """

    app: str
    instance: str
    state: str
    ready: bool
    pid: int | None = None
    port: int | None = None
    restarts: int = 0
    exit_code: int | None = None
    uptime_s: float | None = None
    sidecar_pid: int | None = None
    sidecar_pids: list[int] = []
    sidecar_port: int | None = None
    sidecar_state: str | None = None
    sidecar_restarts: int = 0
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    sidecar_cpu_percent: float | None = None
    sidecar_memory_bytes: int | None = None
    reason: str | None = None
    next_try_in_s: float | None = None
    next_run_at: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How waiting ended; `failed` is the guilty instance, `lines` the last that it wrote."""

    ready: bool
    failed: str | None = None
    reason: str | None = None
    lines: list[str] = []


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an instance that was started, stopped or restarted.

    One that was `kept` was not restarted: another of its app did not come back.
    """

    instance: str
    state: str
    ready: bool
    reason: str | None = None
    kept: bool = False


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to an instance, or to the mesh; `text` says it, `state` is how it is then."""

    action: str
    subject: str
    text: str
    reasons: list[str] = []
    state: str | None = None
    ready: bool | None = None
    reason: str | None = None


class Stopping(msgspec.Struct, frozen=True):
    """The process whose end is the end of the run."""

    pid: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event of the timeline (`meshrun.supervisor.timeline.Happening`)."""

    at: float
    kind: str
    subject: str
    message: str
    source: str | None = None
    destination: str | None = None
    count: int = 1


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why an instance is in its state, and `since` when, in wall-clock seconds.

    `said` is what it says of itself, `tries` how often its probe has been asked. `waiting_for` has
    what its dependencies must be, `unmet` where those are that are not.
    """

    instance: str
    state: str
    ready: bool
    since: float | None = None
    reason: str | None = None
    said: str | None = None
    tries: int = 0
    exit: str | None = None
    restarts: int = 0
    next_try_in_s: float | None = None
    waiting_for: list[str] = []
    unmet: list[str] = []
    lines: list[str] = []
    events: list[Event] = []


class OneOff(msgspec.Struct, frozen=True, kw_only=True):
    """A one-off command's instance, and the layers of its environment over the caller's."""

    instance: str
    env_file: dict[str, str]
    env: dict[str, str]
    injected: dict[str, str]


class Leaf(msgspec.Struct, frozen=True, kw_only=True):
    """The certificate that a worker of a sidecar serves; times in wall-clock seconds."""

    service: str
    instance: str
    worker: int = 1
    identity: str
    serial: str
    not_before: float
    not_after: float
    issued_at: float


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """A trusted root; times in wall-clock seconds."""

    trust_domain: str
    serial: str
    not_before: float
    not_after: float
    active: bool
    pem: str


class Check(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Whether a call is allowed, and by what; `permission` is the number of the one that decided.

    With `dry_run` it would be denied, and is let through.
    """

    allowed: bool
    reason: str = ""
    permission: int | None = None
    dry_run: bool = False
