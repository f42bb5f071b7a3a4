"""Everything that a run needs before its first process: state, ports, the root, the plan.

Nothing is started here, so whatever is wrong leaves nothing half-done.
"""

import contextlib
import os
import resource
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from meshrun.proxy.errors import IdentityError
from meshrun.supervisor import ca, cgroup, leftovers, plan, runfile
from meshrun.supervisor.advice import advice
from meshrun.supervisor.claims import Claims
from meshrun.supervisor.configuration.model import Configuration
from meshrun.supervisor.configuration.source import Source
from meshrun.supervisor.database import Database
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.intention_book import IntentionBook
from meshrun.supervisor.listeners import Leases, Listeners
from meshrun.supervisor.ports import PortTakenError
from meshrun.supervisor.statedir import AlreadyLockedError, StateDir

__all__ = ["Prepared", "check_descriptors", "prepare"]

ROOT_KEY = "root.key"

# Of an instance: two listeners or a lease, pipes and pidfds of app and sidecar, the channel, the
# log, its notifications, the commands that ask it, its hooks, and half as many again while one is
# started; of each further worker of its sidecar: pipe, pidfd, channel, and as many again; besides:
# the loop, the database, callers.
DESCRIPTORS_EACH = 24
DESCRIPTORS_OF_A_WORKER = 6
DESCRIPTORS_BESIDES = 128
MOST_DESCRIPTORS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a run begins with; `notices` are what happened on the way that people should know."""

    run_id: str
    source: Source
    selection: plan.Selection
    plan: plan.Plan
    state: StateDir
    database: Database
    book: IntentionBook
    root: ca.Root
    listeners: Listeners
    leases: Leases
    cgroup: Path | None
    notices: tuple[str, ...]

    def close(self) -> None:
        """Give everything back."""
        if self.cgroup is not None:
            cgroup.remove(self.cgroup)
        self.listeners.close()
        self.leases.close()
        self.database.close()
        self.state.close()


def prepare(
    source: Source,
    configuration: Configuration,
    selection: plan.Selection,
    state_path: Path,
    handed: Mapping[int, socket.socket] | None = None,
) -> Prepared:
    """Take the state folder and everything else that a run needs; `source` is what was loaded.

    `handed` are listening sockets by port that a service manager has opened already.
    Raises MeshrunError: another run has the folder, a port is taken, the root is unusable.
    """
    _raise_descriptor_limit()
    check_descriptors(configuration, selection)
    with contextlib.ExitStack() as undo:
        state = StateDir.open(state_path, create=True)
        undo.callback(state.close)
        _lock(state)
        ended = leftovers.end_leftovers(state)
        database = Database.open(state)
        undo.callback(database.close)
        root, new_root = _root(state, database, configuration.mesh.trust_domain)
        listeners, leases = Listeners(handed=dict(handed or {})), Leases()
        undo.callback(listeners.close)
        undo.callback(leases.close)
        run_id = secrets.token_hex(8)

        claims = Claims(listeners, leases, {})
        try:
            planned = plan.make(
                configuration, selection, database.ports(), claims.claim, source.environ, run_id
            )
        except PortTakenError as error:
            raise claims.explain(error) from error
        database.put_ports(planned.ports)
        undo.pop_all()
        return Prepared(
            run_id=run_id,
            source=source,
            selection=selection,
            plan=planned,
            state=state,
            database=database,
            book=IntentionBook(configuration.intentions, database),
            root=root,
            listeners=listeners,
            leases=leases,
            cgroup=cgroup.create(run_id, _controllers(planned)),
            notices=(
                *(f"ended what an earlier run had left: {command}" for command in ended),
                *((new_root,) if new_root is not None else ()),
                *_useless(listeners),
                *advice(planned),
            ),
        )


def _useless(listeners: Listeners) -> list[str]:
    """Close the sockets that were handed over and have no use, and say which."""
    return [
        f"the service manager has opened port {port}, which is no sidecar's; is its socket unit "
        "older than mesh.toml? See: meshrun export systemd"
        for port in listeners.refuse_handed()
    ]


def _controllers(planned: plan.Plan) -> set[str]:
    """Return the controllers of cgroups that the limits of the apps need."""
    limits = [i.app.limits for i in planned.instances if i.app is not None]
    memory = {"memory"} if any(limit.memory_bytes for limit in limits) else set[str]()
    return memory | ({"pids"} if any(limit.processes for limit in limits) else set())


def _lock(state: StateDir) -> None:
    try:
        state.lock()
    except AlreadyLockedError as error:
        run = runfile.read(state)
        who = "" if run is None else f", supervisor pid {run.supervisor.pid}"
        raise AlreadyLockedError(
            f"a mesh runs already in {state.path}{who}; see it with `meshrun ps`, have it take "
            "a changed file with `meshrun reload`, end it with `meshrun down`, or run a copy "
            "beside it with `meshrun up --isolated`"
        ) from error


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as are allowed; what the launcher forks keeps its own limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def check_descriptors(configuration: Configuration, selection: plan.Selection) -> None:
    """Refuse more instances than there can be pipes and channels for: half a mesh is no mesh.

    Raises MeshrunError, also for an unknown name.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    instances = plan.count_instances(configuration, selection)
    workers = plan.count_workers(configuration, selection)
    further = workers - instances
    needed = DESCRIPTORS_BESIDES + DESCRIPTORS_EACH * instances + DESCRIPTORS_OF_A_WORKER * further
    if needed > most:
        what = f"{instances} {'instance' if instances == 1 else 'instances'}"
        what += f" with {workers} workers" if further else ""
        raise MeshrunError(
            f"cannot run {what}: that takes up to {needed} open files, and the limit "
            f"is {most}; see: ulimit -Hn"
        )


def _root(state: StateDir, database: Database, trust_domain: str) -> tuple[ca.Root, str | None]:
    """Load the root of this mesh, or make one where there is none that can be used.

    There is one key: of a mesh that was renamed and renamed back it is the other name's. No leaf
    outlives its run, so a new root breaks nothing; the second value says why there is one.
    """
    now = datetime.now(tz=UTC)
    certificates = database.roots(trust_domain)
    key = _read_key(state)
    notice = None
    if certificates and key is not None:
        try:
            return ca.load_root(certificates[0], key, trust_domain, now), None
        except IdentityError as error:
            notice = f"made a new root for {trust_domain}: {error}"
    root = ca.create_root(trust_domain, now)
    # The key first: a crash in between leaves a key without its certificate, and the next run
    # makes both anew; nobody has trusted either yet.
    state.write(ROOT_KEY, root.key_pem(), durable=True)
    database.put_root(trust_domain, root.certificate_pem, now.timestamp())
    return root, notice


def _read_key(state: StateDir) -> bytes | None:
    try:
        descriptor = os.open(
            ROOT_KEY, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state.descriptor
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MeshrunError(f"cannot read {state.path / ROOT_KEY}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode & 0o777
        if mode & 0o077:
            raise MeshrunError(
                f"cannot trust {state.path / ROOT_KEY}: others may read it (mode {mode:o}); "
                "remove it to get a new root"
            )
        return file.read(64 * 1024)
