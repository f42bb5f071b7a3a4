"""The run and its instances: what they are, and starting, stopping, restarting them."""

import asyncio
import os
import time
from collections.abc import Sequence

import msgspec
from aiohttp import web

from meshrun.supervisor import processes, usage
from meshrun.supervisor.api.answers import END, RUN, Handler, body, json, problem, want_number
from meshrun.supervisor.lifecycle import Phase, Status
from meshrun.supervisor.oneoff import OneOff
from meshrun.supervisor.plan import Instance
from meshrun.supervisor.rollout import Step
from meshrun.supervisor.run import Run
from meshrun.supervisor.runfile import RUN_MARKER

__all__ = ["ROUTES"]

_meter = usage.Meter()

WAIT_TIMEOUT_S = 60.0
EVENTS_SHOWN = 5


class Names(msgspec.Struct):
    """The body of what is done to apps."""

    names: list[str] = []


async def show_run(request: web.Request) -> web.StreamResponse:
    """Say what runs here."""
    run = request.app[RUN]
    configuration = run.plan.configuration
    return json(
        {
            "run_id": run.prepared.run_id,
            "pid": os.getpid(),
            "mesh": configuration.mesh.name,
            "file": configuration.file,
            "folder": str(configuration.folder),
            "trust_domain": configuration.mesh.trust_domain,
            "default_intention": configuration.mesh.default_intention,
            "started_at": run.started_at,
            "state_dir": str(run.prepared.state.path),
            "isolated": run.prepared.selection.isolated,
            "protocols": {
                name: configuration.protocol(name)
                for name in (*configuration.apps, *configuration.services)
            },
        }
    )


def _uptime_s(status: Status, now: float) -> float | None:
    if not status.alive or status.started_at is None:
        return None
    return round(now - status.started_at, 3)


class _Sidecar:
    """The workers of a sidecar as one."""

    def __init__(self, workers: Sequence[Status]) -> None:
        self.workers = workers
        self.pids = [worker.pid for worker in workers if worker.pid is not None]

    @property
    def state(self) -> str:
        """The state of them all, or of the first that does not run."""
        phases = [worker.phase for worker in self.workers]
        return next((p for p in phases if p is not Phase.RUNNING), Phase.RUNNING).shown

    @property
    def cpu_percent(self) -> float | None:
        """The CPU of all, None where none lives."""
        if not self.pids:
            return None
        return round(sum(_meter.process(pid).cpu_percent for pid in self.pids), 1)

    @property
    def memory_bytes(self) -> int | None:
        """The proportional memory of all, None where none lives."""
        found = [usage.proportional_bytes(pid) for pid in self.pids]
        own = [size for size in found if size is not None]
        return sum(own) if own else None

    def row(self) -> dict[str, object]:
        """Return its part of a row."""
        return {
            "sidecar_pid": self.workers[0].pid,
            "sidecar_pids": self.pids,
            "sidecar_state": self.state,
            "sidecar_restarts": sum(worker.restarts for worker in self.workers),
            "sidecar_cpu_percent": self.cpu_percent,
            "sidecar_memory_bytes": self.memory_bytes,
        }


def _row(run: Run, instance: Instance) -> dict[str, object]:
    now = time.monotonic()
    app = run.apps.get(instance.name)
    sidecar = _Sidecar(run.sidecars.of(instance.name))
    status = app.status if app is not None else Status()
    used = _meter.session(status.pid) if status.pid is not None else None
    return {
        "app": instance.service,
        "instance": instance.name,
        "state": status.phase.shown if app is not None else "external",
        "ready": run.standing.is_ready(instance),
        "pid": status.pid,
        "port": instance.port,
        "restarts": status.restarts,
        "exit_code": status.exit.status if status.exit is not None else None,
        "uptime_s": _uptime_s(status, now),
        "sidecar_port": instance.inbound_port,
        "cpu_percent": used.cpu_percent if used is not None else None,
        "memory_bytes": used.memory_bytes if used is not None else None,
        **sidecar.row(),
        "reason": run.standing.reason(instance.name),
        "next_try_in_s": _next_try_in_s(status, now),
        "next_run_at": run.timetable.next_at(instance.name),
    }


def _command_row(run: Run, one_off: OneOff) -> dict[str, object]:
    """Describe a one-off command. Its use of the machine is its caller's, whose process it is."""
    sidecar = _Sidecar(run.sidecars.of(one_off.instance.name))
    return {
        "app": one_off.instance.service,
        "instance": one_off.instance.name,
        "state": Phase.RUNNING.shown,
        "ready": run.one_offs.is_ready(one_off),
        "pid": one_off.pid,
        "uptime_s": round(time.monotonic() - one_off.started_at, 3),
        "restarts": 0,
        **sidecar.row(),
        "reason": f"runs {one_off.program}",
    }


def _tries(run: Run, instance: Instance) -> int:
    app = run.apps.get(instance.name)
    return run.externals.tries(instance.name) if app is None else app.tries("ready")


def _next_try_in_s(status: Status, now: float) -> float | None:
    return None if status.next_try_at is None else round(max(0.0, status.next_try_at - now), 3)


async def list_instances(request: web.Request) -> web.StreamResponse:
    """Show every instance."""
    run = request.app[RUN]
    rows = [_row(run, instance) for instance in run.plan.instances]
    rows += [_command_row(run, one_off) for one_off in run.one_offs.running]
    _meter.forget_all_but(set(processes.all_pids()))
    return json(rows)


async def wait(request: web.Request) -> web.StreamResponse:
    """Answer when everything is ready, something has failed, or the time is up."""
    run = request.app[RUN]
    timeout_s = want_number(request, "timeout", WAIT_TIMEOUT_S)
    assert timeout_s is not None
    readiness = await run.standing.ready(timeout_s)
    return json(
        {
            "ready": readiness.ready,
            "failed": readiness.failed,
            "reason": readiness.reason,
            "lines": run.logs.last(readiness.failed) if readiness.failed else [],
        }
    )


def _outcome(run: Run, names: Sequence[str], kept: Sequence[Step] = ()) -> web.Response:
    left = {step.subject: str(step) for step in kept}
    rows = []
    for name in names:
        status = run.apps[name].status
        rows.append(
            {
                "instance": name,
                "state": status.phase.shown,
                "ready": status.ready,
                "reason": left.get(name) or status.reason,
                "kept": name in left,
            }
        )
    return json(rows)


async def start(request: web.Request) -> web.StreamResponse:
    """Start apps."""
    run = request.app[RUN]
    return _outcome(run, await run.start_apps((await body(request, Names)).names))


async def stop(request: web.Request) -> web.StreamResponse:
    """Stop apps."""
    run = request.app[RUN]
    names = (await body(request, Names)).names
    # Shielded: a caller who goes away does not leave an app half-stopped.
    return _outcome(run, await asyncio.shield(run.stop_apps(names)))


async def restart(request: web.Request) -> web.StreamResponse:
    """Restart apps."""
    run = request.app[RUN]
    names = (await body(request, Names)).names
    chosen, kept = await asyncio.shield(run.restart_apps(names))
    return _outcome(run, chosen, kept)


async def down(request: web.Request) -> web.StreamResponse:
    """End the run; the answer comes before the end."""
    asyncio.get_running_loop().call_soon(request.app[END])
    return json({"pid": os.getpid()})


async def env(request: web.Request) -> web.StreamResponse:
    """Show the environment that an instance gets."""
    run = request.app[RUN]
    name = run.resolve([request.match_info["instance"]])[0]
    instance = next(i for i in run.plan.instances if i.name == name)
    if instance.environment is None:
        return problem(404, f"{instance.service} is external: meshrun does not start it")
    shown = {k: v for k, v in instance.environment.items() if k != RUN_MARKER}
    return json(shown)


async def why(request: web.Request) -> web.StreamResponse:
    """Explain the state of the instances of an app."""
    run = request.app[RUN]
    names = run.resolve([request.match_info["app"]])
    run.timeline.flush()
    events = run.prepared.database.events(1000)
    answer = []
    for instance in run.plan.instances:
        if instance.name not in names:
            continue
        app = run.apps.get(instance.name)
        status = app.status if app is not None else Status()
        waiting = status.phase is Phase.WAITING
        about = (instance.name, instance.service)
        answer.append(
            {
                "instance": instance.name,
                "state": status.phase.shown if app is not None else "external",
                "ready": run.standing.is_ready(instance),
                "since": run.standing.since(instance.name),
                "reason": run.standing.reason(instance.name),
                "exit": str(status.exit) if status.exit is not None else None,
                "restarts": status.restarts,
                "next_try_in_s": _next_try_in_s(status, time.monotonic()),
                "said": status.said,
                "tries": _tries(run, instance),
                "waiting_for": run.dependants.verdict(instance.name).waiting_for if waiting else [],
                "unmet": run.standing.unmet(instance.name) if waiting else [],
                "lines": run.logs.last(instance.name),
                "events": [e for e in events if e.subject in about or e.source == instance.service][
                    -EVENTS_SHOWN:
                ],
            }
        )
    return json(answer)


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/v1/meshrun/run", show_run),
    ("GET", "/v1/meshrun/instances", list_instances),
    ("GET", "/v1/meshrun/wait", wait),
    ("POST", "/v1/meshrun/start", start),
    ("POST", "/v1/meshrun/stop", stop),
    ("POST", "/v1/meshrun/restart", restart),
    ("POST", "/v1/meshrun/down", down),
    ("GET", "/v1/meshrun/env/{instance}", env),
    ("GET", "/v1/meshrun/why/{app}", why),
)
