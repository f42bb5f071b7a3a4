"""What `ready` and `alive` say: which check, how often, and what counts."""

from meshrun.proxy.regex import RegexError, search
from meshrun.supervisor.configuration.model import (
    Check,
    ExecCheck,
    HttpCheck,
    LogCheck,
    NotifyCheck,
    Probe,
    TcpCheck,
)
from meshrun.supervisor.configuration.tables import Table, dotted
from meshrun.supervisor.configuration.values import (
    UnfitError,
    boolean,
    bounded_text,
    integer,
    request_path,
    wait,
    word,
    words,
)

__all__ = [
    "ALIVE_KEYS",
    "KINDS",
    "READY_KEYS",
    "kind_of",
    "read_alive",
    "read_external_ready",
    "read_ready",
]

KINDS = ("http", "tcp", "exec", "log", "notify")
READY_KEYS = (*KINDS, "interval", "timeout", "failures", "successes", "deadline")
ALIVE_KEYS = tuple(key for key in READY_KEYS if key != "successes")

# What an app says by itself is not asked for: there is no pause and no answer to wait for.
_SAID = ("log", "notify")
_OF_ASKING = ("interval", "timeout", "failures", "successes")
_NEEDS_AN_APP = ("exec", "log", "notify")
_EXAMPLE = '{ http = "/healthz" } or { tcp = true }'
_MOST_IN_A_ROW = 1000
_DEFAULT = Probe(check=TcpCheck())


def kind_of(check: Check) -> str:
    """Return the key that asks for a check."""
    match check:
        case HttpCheck():
            return "http"
        case TcpCheck():
            return "tcp"
        case ExecCheck():
            return "exec"
        case LogCheck():
            return "log"
        case NotifyCheck():
            return "notify"


def read_ready(table: Table) -> Probe | None:
    """Read `ready` of an app."""
    ready = table.table("ready", _EXAMPLE)
    if ready is None:
        return None
    ready.allow(READY_KEYS)
    kind = _kind(ready, KINDS)
    if kind in _SAID:
        _refuse(ready, _OF_ASKING, "the app says it unasked; use deadline")
    return _read_probe(ready)


def read_alive(table: Table) -> Probe | None:
    """Read `alive` of an app."""
    alive = table.table("alive", _EXAMPLE)
    if alive is None:
        return None
    alive.allow(ALIVE_KEYS, elsewhere={"successes": "ready: one success is enough to be alive"})
    kind = _kind(alive, KINDS)
    if kind in _SAID:
        _refuse(alive, ("timeout",), "the app says it unasked; use interval")
    return _read_probe(alive)


def read_external_ready(table: Table) -> Probe | None:
    """Read `ready` of an external service, which can only be asked from outside."""
    ready = table.table("ready", _EXAMPLE)
    if ready is None:
        return None
    ready.allow(
        [key for key in READY_KEYS if key not in _NEEDS_AN_APP],
        elsewhere=dict.fromkeys(
            _NEEDS_AN_APP, "an app: here meshrun runs no process; use http or tcp"
        ),
    )
    if any(key in ready for key in _NEEDS_AN_APP):
        return None
    _kind(ready, ("http", "tcp"))
    return _read_probe(ready)


def _kind(table: Table, kinds: tuple[str, ...]) -> str | None:
    """Return the one kind that is there; report where there is none, or more."""
    found = [kind for kind in kinds if kind in table]
    if len(found) == 1:
        return found[0]
    both = f", not both {found[0]} and {found[1]}" if found else ""
    table.document.report_value(
        table.path, f"{dotted(table.path)} needs one of {', '.join(kinds)}{both}"
    )
    return None


def _refuse(table: Table, keys: tuple[str, ...], why: str) -> None:
    for key in keys:
        if key in table:
            path = (*table.path, key)
            table.document.report_key(path, f"{dotted(path)} has no use here: {why}")


def _read_probe(table: Table) -> Probe:
    return Probe(
        check=_read_check(table),
        interval_s=table.read("interval", wait, _DEFAULT.interval_s),
        timeout_s=table.read("timeout", wait, _DEFAULT.timeout_s),
        failures=table.read("failures", integer(1, _MOST_IN_A_ROW), _DEFAULT.failures),
        successes=table.read("successes", integer(1, _MOST_IN_A_ROW), _DEFAULT.successes),
        deadline_s=table.read("deadline", wait, _DEFAULT.deadline_s),
    )


def _read_check(table: Table) -> Check:
    checks: list[Check] = []
    if "http" in table:
        checks.append(HttpCheck(table.read("http", request_path, "/")))
    if "exec" in table:
        found = enumerate(table.read("exec", words, ()))
        path = (*table.path, "exec")
        checks.append(
            ExecCheck(tuple(table.fitted(each, (*path, i), word, "") for i, each in found))
        )
    if "log" in table:
        checks.append(LogCheck(table.read("log", _pattern, "")))
    for key, check in (("tcp", TcpCheck()), ("notify", NotifyCheck())):
        if not table.read(key, boolean, True):
            table.document.report_value(
                (*table.path, key),
                f"{dotted(table.path)}.{key} = false probes nothing: leave it out",
            )
        if key in table:
            checks.append(check)
    return checks[0] if checks else TcpCheck()


def _pattern(value: object) -> str:
    written = bounded_text(value)
    try:
        search(written)
    except RegexError as error:
        raise UnfitError(f"must be a regular expression of RE2: {error}") from error
    return written
