"""Everything at once: processes killed and stopped while the mesh is changed, under steady calls.

`make chaos` lets it last for a quarter of an hour. The same seed means the same acts, as far as
what lives at a moment allows that.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from support.apps import App, echo
from support.chaos import Chaos
from support.explaining import Call, Denial, complaints, service
from support.footprint import Footprint, grown
from support.mesh import LOOK_AGAIN_S, PATIENCE_S, Mesh
from support.sampling import SEED, WHOLE
from support.town import CALLERS, FOREVER_DENIED, Town

from meshrun.supervisor.cli.records import Event
from meshrun.supervisor.logreading import Reader
from meshrun.supervisor.logs import MESH

STORM_S = float(os.environ.get("MESHRUN_CHAOS_S") or (60.0 if WHOLE else 8.0))
# Before anything is compared, all shall be there that is made at its first use.
WARM_UP_S = 10.0 if WHOLE else 4.0
# One that has crashed often is tried again after 30 s at most.
READY_AGAIN_S = 60.0
SHOWN = 30

FOREVER = [Denial(pair=pair) for pair in FOREVER_DENIED]
KINDS = {"http": ("get", "post", "kept", "slow"), "tcp": ("ask", "talk", "end")}
WAYS = {
    ((source, to), kind)
    for source in ("caller", "middle")
    for to, protocol in CALLERS[source].items()
    for kind in KINDS[protocol]
}


def answer(connection: socket.socket) -> None:
    """Serve one connection of many."""
    with connection:
        echo(connection)


def calls(mesh: Mesh) -> list[Call]:
    """Return all calls that callers have written down so far, in the order of their ends."""
    decoder = msgspec.json.Decoder(Call)
    lines = (
        line
        for file in mesh.folder.glob("calls.*")
        for line in file.read_bytes().splitlines(keepends=True)
    )
    # A line without an end is being written.
    found = [decoder.decode(line) for line in lines if line.endswith(b"\n")]
    return sorted(found, key=lambda call: call.ended)


def until(reached: Callable[[], bool], what: str) -> None:
    """Wait for what nothing announces."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, f"after {PATIENCE_S:g} s still not: {what}"
        time.sleep(LOOK_AGAIN_S)


@contextmanager
def silence(mesh: Mesh) -> Iterator[None]:
    """Have nobody call, and no connection open for a call, until the end of the block."""
    for file in mesh.folder.glob("paused.*"):
        file.unlink()
    pause = mesh.folder / "pause"
    pause.touch()
    try:
        paused = [mesh.folder / f"paused.{row.instance}" for row in mesh.ps() if row.app in CALLERS]
        until(lambda: all(file.exists() for file in paused), "callers that call nobody")
        mesh.client.rotate(())  # closes idle tunnels
        yield
    finally:
        pause.unlink()


def footprint(mesh: Mesh) -> Footprint:
    """Return what the mesh takes once that has come to rest."""
    last: list[Footprint] = []

    def rests() -> bool:
        last.append(Footprint.of(mesh))
        return len(last) > 1 and last[-1].descriptors == last[-2].descriptors

    with silence(mesh):
        until(rests, "the same descriptors twice")
    return last[-1]


def growth(mesh: Mesh, before: Footprint) -> list[str]:
    """Return what the mesh takes more than `before`, and goes on taking."""
    after, found = before, [""]

    def none() -> bool:
        nonlocal after
        after = Footprint.of(mesh)
        found[:] = grown(before, after)
        return not found

    with silence(mesh):
        try:
            until(none, "no more than before")
        except AssertionError:
            return [f"left: {said}" for said in found]
        finally:
            print(f"before: {before}\nafter: {after}")
    return []


def calm(mesh: Mesh) -> list[str]:
    """Return what is wrong with the next calls of everybody: none fails that is allowed."""
    begun = time.time()
    sources = [row.instance for row in mesh.ps() if row.app in CALLERS]
    wanted = {(source, to) for source in sources for to in CALLERS[service(source)]}

    def made() -> list[Call]:
        return [call for call in calls(mesh) if call.began > begun]

    until(lambda: {(call.source, call.to) for call in made()} >= wanted, "calls of everybody")
    return [f"in the calm: {said}" for said in complaints(made(), [], FOREVER)]


def unheard_of(mesh: Mesh) -> list[str]:
    """Return what the command tells of the last events that who followed does not hear."""
    said = mesh.cli("events", "--json", "-n", "200", check=True).stdout.splitlines()
    events = [msgspec.json.decode(line, type=Event) for line in said]
    missing = list(events)

    def none() -> bool:
        heard = mesh.happened
        missing[:] = [event for event in events if event not in heard]
        return not missing

    try:
        until(none, "the followed events")
    except AssertionError:
        return [f"not followed: {event}" for event in missing]
    return []


def said_by_mistake(mesh: Mesh) -> list[str]:
    """Return what meshrun never says of itself when all is well."""
    said = []
    with contextlib.closing(Reader(mesh.state)) as reader:
        reader.add([MESH])
        while batch := reader.read():
            said += [line.text for line in batch]
    mistakes = ("internal error", "unexpected error", "Traceback", "cannot write")
    # What it quotes of the apps' last lines is indented.
    return [
        f"meshrun: {line}"
        for line in said
        if any(word in line for word in mistakes) and not line.startswith(" ")
    ]


@pytest.mark.slow
@pytest.mark.timeout(STORM_S + WARM_UP_S + 400)
def test_whatever_happens_all_is_ready_again_and_each_call_that_failed_has_a_reason(
    tmp_path: Path,
) -> None:
    seed = int(os.environ.get("MESHRUN_CHAOS_SEED") or (time.time() if WHOLE else SEED))
    print(f"for the same acts again: make chaos SEED={seed} SECONDS={STORM_S:g}")
    print(f"the folder of the mesh, with its state and its logs: {tmp_path}")
    found: list[str] = []
    with App(answer) as outside:
        town = Town(outside.port)
        with Mesh(tmp_path, str(town)) as mesh:
            mesh.up()
            chaos = Chaos(mesh, town, seed)
            try:
                with chaos.happening("warm-up"):
                    time.sleep(WARM_UP_S)
                chaos.settle(READY_AGAIN_S)
                before = footprint(mesh)
                with chaos.happening("storm"):
                    time.sleep(STORM_S)
                chaos.settle(READY_AGAIN_S)
                found += calm(mesh)
                found += growth(mesh, before)
                found += unheard_of(mesh)
            finally:
                made, happened = calls(mesh), mesh.happened
                found += complaints(made, happened, [*chaos.denials, *FOREVER], chaos.unrotated)
                found += chaos.complaints
                found += said_by_mistake(mesh)
                found += [f"two at once: {path.name}" for path in tmp_path.glob("doubled.*")]
                failed = sum(bool(call.failure) for call in made)
                print(f"{len(made)} calls, of which {failed} failed; {len(happened)} events")
                print(f"{len(chaos.acts)} acts:", *chaos.acts, sep="\n")
                print(f"{len(found)} complaints:", *found[:SHOWN], sep="\n")
            assert not found, f"{len(found)} complaints, the first: {found[0]}"
            assert {(call.pair, call.kind) for call in made if not call.failure} >= WAYS
