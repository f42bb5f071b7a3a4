"""Changing what runs: a changed file, other numbers of instances, restarts; one after the other.

What cannot be done is known before anything is done: the file is checked, the plan made and its new
ports taken first.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from meshrun.supervisor import claims, plan, suggest
from meshrun.supervisor.access import Access
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.claims import Claims
from meshrun.supervisor.configuration.model import Configuration
from meshrun.supervisor.difference import Difference, difference
from meshrun.supervisor.errors import ConfigError, MeshrunError, UnknownNameError
from meshrun.supervisor.fleet import Fleet
from meshrun.supervisor.plan import Selection
from meshrun.supervisor.ports import PortTakenError
from meshrun.supervisor.preparation import Prepared, check_descriptors
from meshrun.supervisor.reporter import Reporter
from meshrun.supervisor.rollout import Occasion, Rollout, Step, steps

__all__ = ["Reloading", "reselected"]

# How many steps of many a line of the timeline names.
SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Proposal:
    """A plan whose ports have been taken."""

    wanted: Difference
    claims: Claims
    selection: Selection


class Reloading:
    """Makes new plans for a run, and has them rolled out.

    `active` is whether a changed file is being applied; the bell is rung for it.
    """

    def __init__(
        self,
        prepared: Prepared,
        fleet: Fleet,
        rollout: Rollout,
        access: Access,
        reporter: Reporter,
        bell: Bell,
    ) -> None:
        self._prepared = prepared
        self._fleet = fleet
        self._rollout = rollout
        self._access = access
        self._reporter = reporter
        self._bell = bell
        self._selection = prepared.selection
        self._turn = asyncio.Lock()
        self._waiting = 0
        self.active = False

    async def reload(self, *, dry_run: bool) -> list[Step]:
        """Read the file again, and change what it changes; with `dry_run` only say what that is.

        Raises ConfigError, MeshrunError and then nothing is changed; StoppingError.
        """
        async with self._change():
            file = self._fleet.plan.configuration.file
            try:
                proposal = await self._read()
            except MeshrunError as error:
                if not dry_run:
                    self._reporter.reloaded("reload-failed", _refusal(file, error), failed=True)
                raise
            if dry_run:
                proposal.claims.undo()
                return steps(proposal.wanted)
            with self._activity():
                return await self._carry_out(proposal, "reloaded", f"{file} was read again")

    async def scale(self, wanted: Mapping[str, int]) -> list[Step]:
        """Run so many instances of apps from now on, also after a reload.

        Raises UnknownNameError, MeshrunError and then nothing is changed; StoppingError.
        """
        async with self._change():
            for name in wanted:
                self._want_app(name)
            selection = replace(self._selection, scale={**(self._selection.scale or {}), **wanted})
            proposal = self._propose(self._fleet.plan.configuration, selection)
            # What a reload has left as it was is not this command's business.
            changed = tuple(c for c in proposal.wanted.changed if not c.restarts)
            proposal = replace(proposal, wanted=replace(proposal.wanted, changed=changed))
            words = ", ".join(f"{name} to {number}" for name, number in wanted.items())
            return await self._carry_out(proposal, "scaled", f"scaled {words}")

    async def restart(self, names: Collection[str], occasion: Occasion | None = None) -> list[Step]:
        """Restart instances, one of a service after the other; returns those that were left alone.

        See `Rollout.restart`. Raises StoppingError.
        """
        async with self._change():
            there = [name for name in names if name in self._fleet.apps]
            if occasion is not None:
                pressed = occasion.is_pressed
                occasion = replace(occasion, is_pressed=lambda: self._waiting > 0 or pressed())
            return await self._rollout.restart(there, occasion)

    async def _read(self) -> _Proposal:
        running = self._fleet.plan.configuration
        # In a thread: a file may be large, or a pipe that nobody writes to.
        configuration = await asyncio.to_thread(self._prepared.source.load, running.mesh)
        selection = reselected(self._selection, running, configuration)
        return self._propose(configuration, selection)

    def _propose(self, configuration: Configuration, selection: Selection) -> _Proposal:
        """Plan, and take the ports that nobody has yet. Raises MeshrunError."""
        prepared, current = self._prepared, self._fleet.plan
        check_descriptors(configuration, selection)
        held = plan.held(current.instances)
        claimed = Claims(prepared.listeners, prepared.leases, held)
        try:
            new = plan.make(
                configuration,
                selection,
                {**prepared.database.ports(), **held},
                claimed.claim,
                prepared.source.environ,
                prepared.run_id,
            )
        except PortTakenError as error:
            claimed.undo()
            raise claimed.explain(error) from error
        except BaseException:
            claimed.undo()
            raise
        return _Proposal(difference(current, new), claimed, selection)

    async def _carry_out(self, proposal: _Proposal, kind: str, words: str) -> list[Step]:
        wanted = proposal.wanted
        ports = {*plan.held(wanted.old.instances).values(), *wanted.new.ports.values()}
        try:
            self._prepared.database.put_ports(wanted.new.ports)
        except BaseException:
            proposal.claims.undo()
            raise
        # Nothing fails from here on but what is started.
        configuration = wanted.new.configuration
        self._selection = proposal.selection
        self._prepared.book.rebase(configuration.intentions)
        self._access.logging = configuration.mesh.access_log
        kept = await self._rollout.apply(wanted)
        ports -= set(plan.held(self._fleet.plan.instances).values())
        claims.release(self._prepared.listeners, self._prepared.leases, ports)
        left = {step.subject for step in kept}
        done = [*(step for step in steps(wanted) if step.subject not in left), *kept]
        self._reporter.reloaded(kind, f"{words}: {_listed(done)}")
        return done

    @property
    def busy(self) -> bool:
        """Whether something is being changed: what ends then ends for that."""
        return self._turn.locked()

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        self._waiting += 1
        self._bell.ring()
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            self._rollout.want_running()
            yield
        finally:
            self._turn.release()
            self._bell.ring()

    @contextmanager
    def _activity(self) -> Iterator[None]:
        self.active = True
        self._bell.ring()
        try:
            yield
        finally:
            self.active = False
            self._bell.ring()

    def _want_app(self, name: str) -> None:
        configuration = self._fleet.plan.configuration
        if name in configuration.services:
            raise MeshrunError(f"cannot scale {name}: it is external, meshrun does not start it")
        known = [s for s in plan.select(configuration, self._selection) if s in configuration.apps]
        if name not in known:
            hint = suggest.hint(name, known)
            raise UnknownNameError(
                f'cannot scale "{name}": no such app runs here{hint}; there are: {", ".join(known)}'
            )


def reselected(selection: Selection, old: Configuration, new: Configuration) -> Selection:
    """Return what of a changed configuration is to run, where `selection` was chosen of the old.

    What is gone is left out. A number of instances that was chosen at run time stays, unless the
    file's own number is another one now: the latest word counts. Raises MeshrunError if nothing is
    left of what was named.
    """
    known = (*new.apps, *new.services)
    names = tuple(name for name in selection.names if name in known)
    if selection.names and not names:
        raise MeshrunError(
            f"cannot reload {new.file}: of the apps that `meshrun up` was called with "
            f"({', '.join(selection.names)}) none is in it any more; end the mesh with "
            "`meshrun down`"
        )
    scale = {
        name: number
        for name, number in (selection.scale or {}).items()
        if name in new.apps
        and name in old.apps
        and old.apps[name].instances == new.apps[name].instances
    }
    return replace(selection, names=names, scale=scale)


def _refusal(file: str, error: MeshrunError) -> str:
    if not isinstance(error, ConfigError):
        return f"{file} is not applied: {error}"
    first, *more = error.findings
    others = f" (and {len(more)} more, see `meshrun check`)" if more else ""
    return f"{file} is not applied: {first}{others}"


def _listed(done: Sequence[Step]) -> str:
    if not done:
        return "nothing has changed"
    more = f" and {len(done) - SHOWN} more" if len(done) > SHOWN else ""
    return f"{', '.join(map(str, done[:SHOWN]))}{more}"
