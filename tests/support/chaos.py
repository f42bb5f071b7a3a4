"""All that can happen to a mesh, at the same time: a vandal among its processes, and an operator.

Both do what a seed says, as far as processes allow that: which of them live at a moment is nobody's
to choose. What they have done is kept in `acts`.
"""

import math
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

from support.explaining import Denial, Unrotated
from support.mesh import LOOK_AGAIN_S, PATIENCE_S, Mesh
from support.town import PAIRS, RESTARTABLE, SCALABLE, Town

from meshrun.supervisor import processes
from meshrun.supervisor.cli.client import ApiError
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.processes import ProcessId

__all__ = ["Act", "Chaos"]

# Between two acts of the vandal, and of the operator.
VANDAL_S = (0.3, 2.0)
OPERATOR_S = (0.1, 1.0)
# How long who is stopped (SIGSTOP) stays so.
LONGEST_STOPPED_S = 3.0
LONGEST_DENIED_S = 1.5
LONGEST_TAPPED_S = 1.0
MOST_INSTANCES = 4

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
BROKEN = ("[apps.tcp]\nport = nonsense", '[apps.tcp]\ncomand = "x"\n', '[mesh]\nname = "other"\n')


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody has done, and when; wall-clock seconds."""

    began: float
    ended: float
    what: str

    def __str__(self) -> str:
        return f"{self.began:.3f} to {self.ended:.3f} {self.what}"


class Chaos:
    """Happens to a mesh of the `town` between `begin` and `end`."""

    def __init__(self, mesh: Mesh, town: Town, seed: int) -> None:
        self._mesh = mesh
        self._first = self._town = town
        self._seed = seed
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._stopped: list[tuple[float, ProcessId]] = []
        self.acts: list[Act] = []
        self.denials: list[Denial] = []
        self.unrotated: list[Unrotated] = []
        self.complaints: list[str] = []

    @contextmanager
    def happening(self, name: str) -> Iterator[None]:
        """Let it happen until the end of the block; the same `name` means the same acts."""
        self._over.clear()
        for who, do in (("vandal", self._vandalise), ("operator", self._operate)):
            rng = Random(f"{self._seed}/{name}/{who}")
            thread = threading.Thread(target=self._guarded, args=(do, rng), name=who)
            self._threads.append(thread)
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(4 * PATIENCE_S)
                if thread.is_alive():
                    self.complaints.append(f"the {thread.name} is not done with: {self.acts[-1]}")
            self._threads.clear()

    def _guarded(self, do: Callable[[Random], None], rng: Random) -> None:
        try:
            do(rng)
        except Exception:  # noqa: BLE001 - whatever it is, the test is to say it
            self.complaints.append(traceback.format_exc())

    def _did(self, began: float, what: str) -> None:
        self.acts.append(Act(began, time.time(), what))

    # The vandal.

    def _vandalise(self, rng: Random) -> None:
        try:
            while not self._over.wait(rng.uniform(*VANDAL_S)):
                self._wake(time.monotonic())
                self._hurt(rng)
        finally:
            self._wake()

    def _hurt(self, rng: Random) -> None:
        victims = self._victims(rng)
        if not victims:
            return  # all wait for their next try
        name, victim = rng.choice(victims)
        number = rng.choice(SIGNALS)
        stopped_s = rng.uniform(0.1, LONGEST_STOPPED_S)
        began = time.time()
        if not processes.send_signal(victim, number):
            return
        if number == signal.SIGSTOP:
            self._stopped.append((time.monotonic() + stopped_s, victim))
            self._did(began, f"STOP {name} ({victim.pid}) for {stopped_s:.1f} s")
        else:
            self._did(began, f"{signal.Signals(number).name[3:]} {name} ({victim.pid})")

    def _victims(self, rng: Random) -> list[tuple[str, ProcessId]]:
        """Return the processes of one kind: apps, sidecars, or what the launcher has besides."""
        run = self._mesh.recorded()
        started = {each.name: each.process for each in run.processes}
        others = set(processes.children(self._mesh.launcher_pid))
        others -= {each.pid for each in run.processes}
        strays = {f"stray {pid}": found for pid in others if (found := processes.identify(pid))}
        kinds = (
            {name: each for name, each in started.items() if not name.startswith("sidecar ")},
            {name: each for name, each in started.items() if name.startswith("sidecar ")},
            strays,
        )
        (chosen,) = rng.choices(kinds, (5, 4, 1))
        return sorted(chosen.items())

    def _wake(self, now: float | None = None) -> None:
        """Let those go on who have been stopped for long enough, or all."""
        due = [each for each in self._stopped if now is None or each[0] <= now]
        self._stopped = [each for each in self._stopped if each not in due]
        for _, process in due:
            began = time.time()
            if processes.send_signal(process, signal.SIGCONT):
                self._did(began, f"CONT {process.pid}")

    # The operator.

    def _operate(self, rng: Random) -> None:
        repertoire: Sequence[Callable[[Random], str]] = (
            *(self._change, self._change, self._resize, self._toggle_extra, self._break_file),
            *(self._scale, self._restart, self._restart, self._rotate, self._rotate),
            *(self._deny, self._deny, self._allow, self._look, self._mend),
            *(self._borrow, self._tap),
        )
        # Each of them once before any twice.
        order = rng.sample(repertoire, len(repertoire))
        while not self._over.wait(rng.uniform(*OPERATOR_S)):
            do = order.pop() if order else rng.choice(repertoire)
            began = time.time()
            try:
                what = do(rng)
            except MeshrunError as error:
                what = f"{do.__name__} failed: {error}"
                self.complaints.append(f"{time.time():.3f} the operator's {what}")
            self._did(began, what)

    def _write(self, town: Town) -> str:
        before, self._town = self._town, town
        (self._mesh.folder / "mesh.toml").write_text(str(town))
        asked = time.time()
        done = self._mesh.client.reload(dry_run=False)
        if before.with_extra and not town.with_extra:
            # Its intentions go first, as long as it lives it is denied what it asks for.
            self.denials += (
                Denial(pair=pair, asked=asked, in_force=math.inf, gone=time.time())
                for pair in PAIRS
                if pair[0] == "extra"
            )
        return ", ".join(f"{step.action} {step.subject}" for step in done) or "nothing changed"

    def _change(self, rng: Random) -> str:
        name = rng.choice(RESTARTABLE)
        notes = {**self._town.notes, name: rng.randrange(1 << 20)}
        return f"reload, env of {name}: {self._write(replace(self._town, notes=notes))}"

    def _resize(self, rng: Random) -> str:
        name = rng.choice(SCALABLE)
        instances = {**self._town.instances, name: rng.randint(1, MOST_INSTANCES)}
        town = replace(
            self._town,
            instances=instances,
            workers={"web": rng.randint(1, 2)},
            max_connections=rng.randint(500, 1000),
        )
        return f"reload, {instances[name]} of {name}, …: {self._write(town)}"

    def _toggle_extra(self, _rng: Random) -> str:
        town = replace(self._town, with_extra=not self._town.with_extra)
        return f"reload, extra {town.with_extra}: {self._write(town)}"

    def _break_file(self, rng: Random) -> str:
        file = self._mesh.folder / "mesh.toml"
        file.write_text(str(self._town).replace("[mesh]\n", "", 1) + rng.choice(BROKEN))
        before = {row.instance for row in self._mesh.ps()}
        try:
            self._mesh.client.reload(dry_run=False)
        except ApiError as error:
            if error.status != 422:
                raise
        else:
            self.complaints.append("a broken file was not refused")
        if {row.instance for row in self._mesh.ps()} != before:
            self.complaints.append("a broken file has changed something")
        file.write_text(str(self._town))
        return "reload of a broken file"

    def _scale(self, rng: Random) -> str:
        name, number = rng.choice(SCALABLE), rng.randint(1, MOST_INSTANCES)
        done = self._mesh.client.scale({name: number})
        return f"scale {name}={number}: {', '.join(f'{s.action} {s.subject}' for s in done)}"

    def _restart(self, rng: Random) -> str:
        name = rng.choice(RESTARTABLE)
        outcomes = self._mesh.client.act("restart", [name])
        return f"restart {name}: {', '.join(f'{o.instance} {o.state}' for o in outcomes)}"

    def _rotate(self, rng: Random) -> str:
        names = rng.choice(((), (rng.choice(RESTARTABLE),)))
        began = time.time()
        try:
            return f"rotate {names}: {len(self._mesh.client.rotate(names))} leaves"
        except ApiError as error:
            late = re.match("cannot rotate: (.*) serve no new leaf", str(error))
            if late is None:
                raise
            workers = late[1].split(", ")
            self.unrotated += (Unrotated(w.partition("/")[0], began, time.time()) for w in workers)
            return f"rotate {names}: {error}"

    def _deny(self, rng: Random) -> str:
        source, destination = pair = rng.choice(PAIRS)
        denied_s = rng.uniform(0.0, LONGEST_DENIED_S)
        asked = time.time()
        self._put(source, destination, "deny")
        in_force = time.time()
        self._over.wait(denied_s)
        taken_back = time.time()
        self._mesh.client.delete_intention(source, destination)
        denial = Denial(
            pair=pair, asked=asked, in_force=in_force, taken_back=taken_back, gone=time.time()
        )
        self.denials.append(denial)
        return f"deny {source} => {destination}"

    def _allow(self, rng: Random) -> str:
        """Have an intention that changes nothing come and go."""
        source, destination = rng.choice(PAIRS)
        self._put(source, destination, "allow")
        self._mesh.client.delete_intention(source, destination)
        return f"allow {source} => {destination}"

    def _put(self, source: str, destination: str, action: str) -> None:
        self._mesh.client.put_intention(
            source, destination, action, description="", meta={}, replace=True
        )

    def _look(self, rng: Random) -> str:
        client = self._mesh.client
        rows = client.instances()
        client.why(rng.choice(rows).app)
        client.metrics()
        return f"look at {len(rows)} instances"

    def _borrow(self, _rng: Random) -> str:
        """Have a one-off command, whose holder goes at once."""
        one_off, lines = self._mesh.client.begin_one_off("caller", "true")
        lines.close()
        return f"run {one_off.instance}"

    def _tap(self, rng: Random) -> str:
        source, destination = rng.choice(PAIRS)
        if source == "extra":
            source = "*"
        lines = self._mesh.client.tap(source, destination)
        self._over.wait(rng.uniform(0.0, LONGEST_TAPPED_S))
        lines.close()
        return f"tap {source} {destination}"

    def _mend(self, _rng: Random) -> str:
        return f"start {self._start_failed()}"

    def _start_failed(self) -> list[str]:
        """Start those that are to stay ended; whatever else has ended comes back by itself."""
        failed = [row.instance for row in self._mesh.ps() if row.state == "failed"]
        if failed:
            self._mesh.client.act("start", failed)
        return failed

    # Afterwards.

    def settle(self, deadline_s: float) -> None:
        """Bring the mesh back to what it was, and wait until all of it is ready."""
        deadline = time.monotonic() + deadline_s
        scale: Mapping[str, int] = {name: self._first.instances[name] for name in SCALABLE}
        while True:
            began = time.time()
            # One that was in a crash loop may have kept others of its service from being changed.
            said = self._write(self._first)
            said += f", scale: {len(self._mesh.client.scale(scale))}, start {self._start_failed()}"
            self._did(began, f"settle: {said}")
            verdict = self._mesh.client.wait(max(0.1, deadline - time.monotonic()))
            if verdict.ready and said == "nothing changed, scale: 0, start []":
                break
            late = time.monotonic() > deadline
            assert not late, f"not ready {deadline_s:g} s after the end: {verdict.reason}"
            time.sleep(LOOK_AGAIN_S)
        # Whom it had left behind may have been killed, and that is nobody's business.
        self._mesh.client.act("restart", ["daemon"])
