"""Each request and connection of the mesh: written to the access log, shown to whoever taps.

A line of the access log is a JSON object.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from meshrun.proxy.messages import TOLD_TEXTS, Record, Recorded, Reporter, Told
from meshrun.supervisor import logreading
from meshrun.supervisor.logs import ACCESS, Logs
from meshrun.supervisor.plan import Instance
from meshrun.supervisor.statedir import StateDir

__all__ = ["Access", "Entries", "Entry", "Lost", "concerns", "read", "tail"]


class Entry(Told[datetime], frozen=True, kw_only=True, omit_defaults=True):
    """A request or connection as the sidecar of `instance` saw it, with text as Unicode.

    What there is none of is left out, but for these.
    """

    at: datetime = msgspec.field(name="time")
    instance: str
    reporter: Reporter
    received_bytes: int
    sent_bytes: int

    @classmethod
    def of(cls, record: Record, instance: str) -> "Entry":
        """Return the entry of a record that a sidecar sent."""
        said: dict[str, object] = msgspec.structs.asdict(record)
        said |= {name: _readable(getattr(record, name)) for name in TOLD_TEXTS}
        said["time"] = datetime.fromtimestamp(record.at, UTC)
        said["duration_s"] = round(record.duration_s, 6)
        said["instance"] = instance
        return msgspec.convert(said, cls)


def _readable(text: str) -> str:
    """Read Latin-1 that stands for bytes as UTF-8, and escape what a terminal would obey."""
    if text.isascii() and text.isprintable():
        return text
    decoded = text.encode("latin-1", "replace").decode(errors="backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in decoded
    )


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="lost"):
    """So many are missing here: the sidecar of `instance` had more to tell than was taken."""

    time: datetime
    instance: str
    lost: int


Entries = Sequence[Entry | Lost]


class _Kind(msgspec.Struct, frozen=True):
    kind: str


def read(line: bytes) -> Entry | Lost:
    """Return what a line of JSON says. Raises msgspec.DecodeError."""
    if msgspec.json.decode(line, type=_Kind).kind == "lost":
        return msgspec.json.decode(line, type=Lost)
    return msgspec.json.decode(line, type=Entry)


@dataclass(frozen=True, slots=True, eq=False)
class _Follower:
    """Who hears of what went from `source` to `destination`, each None for any."""

    tell: Callable[[Entries], None]
    source: str | None
    destination: str | None

    def concerns(self, instance: Instance) -> bool:
        """Tell whether the sidecar of an instance may see what is meant.

        What never reached the destination the caller's sidecar has seen.
        """
        if self.destination in (None, instance.service):
            return True
        called = any(upstream.service == self.destination for upstream in instance.upstreams)
        return called and self.source in (None, instance.service)

    def wants(self, entry: Entry | Lost) -> bool:
        """Tell whether an entry of a sidecar that it concerns is meant."""
        return isinstance(entry, Lost) or (
            self.source in (None, entry.source) and self.destination in (None, entry.destination)
        )


class Access:
    """Takes what the sidecars recorded.

    `logging` is whether there is an access log; then every sidecar records, else only those that
    somebody taps.
    """

    def __init__(self, logs: Logs, clock: Callable[[], float], *, logging: bool) -> None:
        self._logs = logs
        self._clock = clock
        self.logging = logging
        self._followers: set[_Follower] = set()

    def wanted_of(self, instance: Instance) -> bool:
        """Tell whether the sidecar of an instance shall record."""
        return self.logging or any(follower.concerns(instance) for follower in self._followers)

    def take(self, instance: Instance, message: Recorded) -> None:
        """Write and show what the sidecar of an instance recorded."""
        entries: list[Entry | Lost] = [Entry.of(r, instance.name) for r in message.records]
        if message.lost:
            now = datetime.fromtimestamp(self._clock(), UTC)
            entries.append(Lost(time=now, instance=instance.name, lost=message.lost))
        if self.logging:
            self._logs.append(ACCESS, b"".join(msgspec.json.encode(e) + b"\n" for e in entries))
        for follower in tuple(self._followers):
            if follower.concerns(instance):
                wanted = [entry for entry in entries if follower.wants(entry)]
                if wanted:
                    follower.tell(wanted)

    def follow(
        self,
        tell: Callable[[Entries], None],
        *,
        source: str | None = None,
        destination: str | None = None,
    ) -> Callable[[], bool]:
        """Call `tell` with entries from now on, until what is returned is called.

        That tells whether it was the first time.
        """
        follower = _Follower(tell, source, destination)
        self._followers.add(follower)

        def leave() -> bool:
            followed = follower in self._followers
            self._followers.discard(follower)
            return followed

        return leave


class _Stored(msgspec.Struct, frozen=True):
    """What of a line of the file is looked at; a `Lost` has only an instance."""

    instance: str
    source: str = ""
    destination: str = ""


def concerns(entry: Entry | Lost | _Stored, names: Collection[str]) -> bool:
    """Tell whether an entry names one of these services and instances; none means all."""
    if not names or entry.instance in names:
        return True
    return not isinstance(entry, Lost) and (entry.source in names or entry.destination in names)


_read = msgspec.json.Decoder(_Stored)


def tail(
    state: StateDir, names: Collection[str], last: int | None, until: logreading.End | None = None
) -> list[bytes]:
    """Return the last entries of the access log that concern `names`, oldest first, as JSON."""

    def parse(raw: bytes) -> bytes | None:
        try:
            return raw if concerns(_read.decode(raw), names) else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # cut off by a crash or a full disk: no entry

    return logreading.tail_of(state, ACCESS, parse, last, until)
