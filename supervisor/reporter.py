"""Turns what happens into events of the timeline and lines of the log."""

from collections.abc import Callable, Sequence

from meshrun.proxy import messages
from meshrun.supervisor import backoff, ca, lifecycle
from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.configuration.model import HookName
from meshrun.supervisor.journal import Journal
from meshrun.supervisor.lifecycle import Phase, Status
from meshrun.supervisor.lifecycle_events import Event
from meshrun.supervisor.plan import Instance, Worker
from meshrun.supervisor.timeline import Timeline
from meshrun.supervisor.watching.burst import REST_S

__all__ = ["Reporter"]

_LONGEST_EXAMPLE = 100


class Reporter:
    """Says what happens to apps and sidecars, each thing once."""

    def __init__(
        self,
        timeline: Timeline,
        journal: Journal,
        last_lines: Callable[[str], list[str]],
        mark: Callable[[str, int, str], None],
    ) -> None:
        self._timeline = timeline
        self._journal = journal
        self._last_lines = last_lines
        self._mark = mark
        self._hinted: set[tuple[str, str]] = set()

    # Apps.

    def app_changed(
        self, instance: Instance, before: Status, after: Status, event: Event, now: float
    ) -> None:
        """Say what changed; `now` is of the clock of the statuses."""
        name = instance.name
        if isinstance(event, events.Exited):
            self._timeline.add("exited", name, f"{name} ended: {after.exit}")
            self._mark(name, after.restarts, f"ended: {after.exit}")
        if isinstance(event, events.SpawnFailed):
            self._mark(name, before.restarts, f"could not be started: {event.reason}")
        if before.pid is None and after.pid is not None:
            nth = f" (restart {after.restarts})" if after.restarts else ""
            self._mark(name, after.restarts, f"started, pid {after.pid}{nth}")
            self._timeline.add("started", name, f"{name} started, pid {after.pid}")
            port = instance.port or None
            self._journal.info(f"{name} started", pid=after.pid, port=port)
        if after.ready and not before.ready and isinstance(event, events.ProbeSucceeded):
            self._timeline.add("ready", name, f"{name} is ready")
            self._journal.info(f"{name} is ready")
        if isinstance(event, events.LivenessLost) and after.condemned and not before.condemned:
            self._timeline.add("not-alive", name, f"{name} is ended: {after.reason}")
            self._journal.warning(f"{name} is ended: {after.reason}")
        if isinstance(event, events.Restart) and after.phase is not before.phase:
            why = "" if event == events.Restart() else f": {event.reason}"
            self._journal.info(f"{name} is restarted{why}")
        if isinstance(event, events.StoppingAnnounced) and after.phase is not before.phase:
            self._timeline.add("stopping", name, f"{name} says that it is stopping")
            self._journal.info(f"{name} says that it is stopping")
        if before.ready and not after.ready and isinstance(event, events.ProbeFailed):
            self._timeline.add("not-ready", name, f"{name} is not ready: {event.reason}")
            self._journal.warning(f"{name} is not ready: {event.reason}")
        if after.skipped > before.skipped:
            message = f"{name} does not run at this time: its last run has not ended"
            self._timeline.add("skipped", name, message)
            self._journal.warning(message)
        restarted = after.restarts > before.restarts and after.phase is Phase.SPAWNING
        if after.phase is not before.phase or restarted:
            self._phase_entered(name, before, after, now)

    def _phase_entered(self, name: str, before: Status, after: Status, now: float) -> None:
        match after.phase:
            case Phase.SPAWNING if before.phase in (Phase.ENDING, Phase.CLEANING):
                how = after.reason or before.reason
                self._timeline.add("restarting", name, f"{name} starts again ({how})")
                if before.wanted is lifecycle.Wanted.RUN:
                    self._journal.warning(f"{name} ended ({how}), starts again at once")
            case Phase.BACKOFF:
                self._retry(name, after, now)
            case Phase.CRASH_LOOP:
                self._retry(name, after, now)
                if not before.looping:
                    self._show_last_lines(name)
            case Phase.SCHEDULED if before.final:
                pass  # it waits for its first time
            case Phase.FAILED | Phase.SCHEDULED if after.reason:
                self._timeline.add("failed", name, f"{name} failed: {after.reason}")
                self._journal.error(f"{name} failed: {after.reason}")
                self._show_last_lines(name)
            case Phase.COMPLETED | Phase.SCHEDULED:
                self._timeline.add("completed", name, f"{name} completed")
                self._journal.info(f"{name} completed")
            case Phase.STOPPED if before.pid is not None or before.phase is Phase.CLEANING:
                self._timeline.add("stopped", name, f"{name} stopped")
                self._journal.info(f"{name} stopped")
            case Phase.KILLING:
                why = after.reason or "did not end in time"
                self._timeline.add("killing", name, f"{name} is killed: {why}")
                self._journal.warning(f"{name} is killed: {why}")
            case _:
                pass

    def _retry(self, name: str, after: Status, now: float) -> None:
        in_s = max(0.0, (after.next_try_at or now) - now)
        loop = "crash loop: " if after.phase is Phase.CRASH_LOOP else ""
        what = "ended" if after.started_at is not None else "could not be started"
        message = f"{name} {what} ({after.reason}), {loop}next try in {in_s:.1f} s"
        self._timeline.add(after.phase.shown, name, message)
        self._journal.warning(message)

    def output_held(self, name: str, message: str) -> None:
        """Say who keeps the output of an app that has ended: what they write is lost."""
        self._timeline.add("output-held", name, f"{name} has ended, but {message}")
        self._journal.warning(f"{name} has ended, but {message}")

    def _show_last_lines(self, name: str) -> None:
        lines = self._last_lines(name)
        if lines:
            text = "\n".join(f"    {line}" for line in lines)
            self._journal.info(f"the last lines of {name}:\n{text}")

    def hook_ended(self, name: str, hook: HookName, problem: str) -> None:
        """Say how a hook of an instance went."""
        if problem:
            message = f"hook {hook} of {name} failed: {problem}"
            self._timeline.add("hook-failed", name, message)
            self._journal.warning(message)
        else:
            self._timeline.add("hook", name, f"hook {hook} of {name} succeeded")

    def not_drained(self, name: str, timeout_s: float) -> None:
        """Say that calls to an instance are cut, which have not ended in time."""
        message = f"{name} still has calls after {timeout_s:g} s, which end with it"
        self._timeline.add("not-drained", name, message)
        self._journal.warning(message)

    def watching(self, service: str, folders: int) -> None:
        """Say that the files of an app are watched from now on."""
        what = f"{folders} {'folder' if folders == 1 else 'folders'}"
        self._timeline.add("watching", service, f"files of {service} are watched ({what})")

    def not_watching(self, service: str, reason: str) -> None:
        """Say why the files of an app are not watched; it runs without that."""
        message = f"cannot watch files for {service}, it runs without: {reason}"
        self._timeline.add("not-watching", service, message)
        self._journal.warning(message)

    def files_changed(self, service: str, message: str, *, restarts: bool) -> None:
        """Say what follows from a change of files; the log tells of each restart by itself."""
        self._timeline.add("files-changed", service, message)
        if not restarts:
            self._journal.info(message)

    def storming(self, service: str, changes: str) -> None:
        """Say that changes have followed each other too fast to go on so."""
        message = (
            f"{service}: {changes}, as so often in the last {backoff.CRASH_LOOP_WINDOW_S:g} s; if "
            f"that is its own doing, name it in watch.ignore; the next change waits {REST_S:g} s"
        )
        self._timeline.add("files-storming", service, message)
        self._journal.warning(message)

    def left_as_it_was(self, name: str, reasons: Sequence[str]) -> None:
        """Say that an instance has not been restarted, though files have changed."""
        message = f"{name} is left as it was: {', '.join(reasons)}"
        self._timeline.add("kept", name, message)
        self._journal.warning(message)

    def reloaded(self, kind: str, message: str, *, failed: bool = False) -> None:
        """Say what became of a change of the running mesh."""
        self._timeline.add(kind, "mesh", message)
        (self._journal.error if failed else self._journal.info)(message)

    def external_changed(self, instance: Instance, reason: str) -> None:
        """Say that an external service became ready, or with a reason that it is not."""
        name = instance.name
        if reason:
            self._timeline.add("not-ready", name, f"{name} is not ready: {reason}")
            self._journal.warning(f"{name} is not ready: {reason}")
        else:
            self._timeline.add("ready", name, f"{name} is ready")
            self._journal.info(f"{name} is ready")

    # Sidecars.

    def worker_changed(
        self, worker: Worker, before: Status, after: Status, event: Event, stopping: bool
    ) -> None:
        """Say when a worker ended though nobody asked it to."""
        name, instance = worker.title, worker.instance
        if isinstance(event, events.Exited) and not stopping:
            self._timeline.add("sidecar-exited", instance.name, f"{name} ended: {after.exit}")
            self._journal.warning(f"{name} ended ({after.exit}), starts again")
        if isinstance(event, events.SpawnFailed):
            self._journal.error(f"{name} cannot be started: {after.reason}")
        if before.pid is None and after.pid is not None and after.restarts > 0:
            self._timeline.add("sidecar-started", instance.name, f"{name} started again")

    def denied(self, worker: Worker, report: messages.Denied) -> None:
        """Say who was refused and by what, or would have been but for a dry run."""
        instance = worker.instance
        pair = (report.source, instance.service)
        message = _denial(report, instance.service)
        self._timeline.add(
            "would-deny" if report.dry_run else "denied",
            instance.service,
            message,
            source=report.source,
            destination=instance.service,
            count=report.count,
        )
        times = report.count if report.count > 1 else None
        kind = "dry run" if report.dry_run else "denied"
        self._journal.warning(f"{kind}: {message}", times=times)
        if report.by_default and pair not in self._hinted:
            self._hinted.add(pair)
            hint = f"meshrun intentions create {report.source} {instance.service}"
            self._journal.info(f"if that call is meant to be, allow it with: {hint}")

    def connection_failed(self, worker: Worker, report: messages.ConnectionFailed) -> None:
        """Say that a connection found nobody, or none that had room for it."""
        instance = worker.instance
        if report.upstream is None:
            ends = f"to {instance.name}"
        else:
            ends = f"of {instance.name} to {report.upstream}"
        # A limit that is named in the reason is the worker's part of it.
        where = f" in worker {worker.number}" if instance.workers > 1 else ""
        message = f"a connection {ends} failed{where}: {report.reason}"
        self._timeline.add("connection-failed", instance.name, message, count=report.count)
        self._journal.warning(message)

    def rotated(self, worker: Worker, leaf: ca.IssuedLeaf, *, first: bool) -> None:
        """Note a new leaf."""
        kind = "issued" if first else "rotated"
        subject = worker.instance.name
        self._timeline.add(kind, subject, f"{worker.name} serves leaf {leaf.serial}")

    def worker_said(self, worker: Worker, report: messages.Logged) -> None:
        """Pass a worker's line on."""
        self._journal.log(_LEVELS[report.level], f"{worker.title}: {report.message}")

    def worker_wrote(self, worker: Worker, lines: list[bytes]) -> None:
        """Pass on what a worker wrote to stderr: a traceback, a complaint of a library."""
        text = "\n".join(line.decode(errors="replace") for line in lines)
        self._journal.error(f"{worker.title}:\n{text}")


def _denial(report: messages.Denied, service: str) -> str:
    cut = "live connection cut: " if report.live else ""
    if report.kind == "peer":
        return f"{cut}a stranger was refused at {service}: {report.reason}"
    if report.kind == "request":
        return f"{report.source} sent {service} what is no request: {report.reason}"
    verb = "would be denied at" if report.dry_run else "may not call"
    request = f" ({_example(report.request)})" if report.request else ""
    return f"{cut}{report.source} {verb} {service}{request}: {report.reason}"


def _example(request: str) -> str:
    """Return a request, which a caller chose, in few characters that a terminal only shows."""
    shown = request if len(request) <= _LONGEST_EXAMPLE else request[: _LONGEST_EXAMPLE - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in shown)


_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
