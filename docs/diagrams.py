"""Draws the life of a process from its table, and puts the drawing into docs/architecture.md.

`python docs/diagrams.py` rewrites the drawing; a test fails while it is not what the table says.
The table names handlers, not outcomes: so every phase is fed every event, under every policy and in
every situation that a handler looks at, and what comes out is drawn.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.configuration.model import RestartPolicy
from meshrun.supervisor.lifecycle import Phase, Policy, Status, Wanted, step
from meshrun.supervisor.lifecycle_events import Event, Exit

ARCHITECTURE = Path(__file__).with_name("architecture.md")
BEGIN = "<!-- drawn by docs/diagrams.py: begin -->\n"
END = "<!-- drawn by docs/diagrams.py: end -->\n"

EVENTS: tuple[Event, ...] = (
    events.Start(),
    events.Start(now=True),
    events.Restart(),
    events.Stop(),
    events.Kill(),
    events.Due(),
    events.Revised(),
    events.DependenciesMet(),
    events.DependencyFailed("a dependency failed"),
    events.Spawned(pid=1),
    events.SpawnFailed("no such command"),
    events.SpawnFailed("no memory", permanent=False),
    events.ProbeSucceeded(),
    events.ProbeFailed("refused"),
    events.LivenessLost("answered 500"),
    events.Said("loading"),
    events.StoppingAnnounced(),
    events.TimeoutExtended(by_s=10.0),
    events.Exited(Exit(0)),
    events.SessionEnded(),
    events.HookEnded("on_exit"),
    events.TimerFired(number=0),
)
RESTARTS: tuple[RestartPolicy, ...] = ("never", "on-failure", "always")
Edges = dict[tuple[Phase, Phase], set[str]]


def statuses(phase: Phase) -> Iterator[Status]:
    """Every situation of a phase that decides what comes next."""
    for wanted, attempt, looping, code in product(Wanted, (0, 1), (False, True), (0, 1)):
        yield Status(
            phase=phase,
            wanted=wanted,
            attempt=attempt,
            looping=looping,
            started_at=0.0,
            due_at=0.0,
            exit=Exit(code),
        )


def policies() -> Iterator[Policy]:
    """Every policy that decides what comes next."""
    either = (False, True)
    for restart, scheduled, has_ready, hooks in product(RESTARTS, either, either, either):
        yield Policy(
            restart=restart,
            scheduled=scheduled,
            has_ready=has_ready,
            has_on_ready=hooks,
            has_on_exit=hooks,
        )


def edges() -> Edges:
    """Which phases follow each other, and the events after which they do."""
    found: Edges = {}
    for phase, event, policy in product(Phase, EVENTS, policies()):
        for status in statuses(phase):
            after, _ = step(status, event, policy, 1.0, 0.0)
            if after.number != status.number:
                found.setdefault((phase, after.phase), set()).add(type(event).__name__)
    return found


def drawing() -> str:
    """The state diagram, in Mermaid."""
    order = [type(event).__name__ for event in EVENTS]
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> STOPPED"]
    for (source, target), caused in sorted(edges().items(), key=_by_phase):
        label = ", ".join(sorted(caused, key=order.index))
        lines.append(f"    {source.name} --> {target.name}: {label}")
    return "\n".join([*lines, "```"]) + "\n"


def _by_phase(edge: tuple[tuple[Phase, Phase], set[str]]) -> tuple[int, int]:
    (source, target), _ = edge
    return source.value, target.value


def drawn(document: str) -> str:
    """The document with the drawing between its marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{drawing()}{END}{after}"


if __name__ == "__main__":
    ARCHITECTURE.write_text(drawn(ARCHITECTURE.read_text()))
