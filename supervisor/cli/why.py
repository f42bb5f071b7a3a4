"""`meshrun why`: why an app is in its state, or why a call is allowed or denied."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click
import msgspec

from meshrun.proxy.intentions import (
    WILDCARD,
    Action,
    Decision,
    Intention,
    Permission,
    Protocol,
    decide,
    precedence,
)
from meshrun.supervisor.cli.columns import age
from meshrun.supervisor.cli.names import complete_service
from meshrun.supervisor.cli.permission_words import numbered
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.ps import state_colour
from meshrun.supervisor.cli.records import Explanation
from meshrun.supervisor.cli.request_options import Asking, request_options
from meshrun.supervisor.intention_json import IntentionRecord

if TYPE_CHECKING:
    from meshrun.proxy.http.heads import Request

__all__ = ["outranked", "why"]


@click.command(short_help="Explain the state of APP, or whether SRC may call DST.")
@click.argument("app", metavar="APP | SRC", shell_complete=complete_service)
@click.argument("destination", metavar="[DST]", required=False, shell_complete=complete_service)
@request_options
@click.option("--json", "as_json", is_flag=True, help="Print an object, or a list of them.")
@click.pass_obj
def why(
    place: Place,
    app: str,
    destination: str | None,
    method: str | None,
    path: str | None,
    headers: tuple[str, ...],
    as_json: bool,
) -> None:
    """Explain the state of APP, or whether SRC may call DST, or make one HTTP request to it.

    \b
    meshrun why web       why each instance of web runs, waits or fails
    meshrun why web db    which intention decides about web calling db, and how
    meshrun why web api --method GET --path /admin -H x-role=admin

    The last two work where no mesh runs, too.
    """
    about = Asking(method, path, headers)
    if destination is not None:
        _explain_call(place, app, destination, about, as_json)
        return
    if about:
        raise click.UsageError("--method, --path and -H are about a call: name SRC and DST")
    explanations = place.client().why(app)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(explanations), indent=2).decode())
    else:
        click.echo("\n\n".join("\n".join(_lines(found)) for found in explanations))


def outranked(intentions: Iterable[Intention], decision: Decision) -> list[Intention]:
    """Return the intentions that match the pair too, but count less than the deciding one."""
    deciding = decision.intention
    return [i for i in intentions if deciding is not None and i.pair != deciding.pair]


@dataclass(frozen=True, slots=True)
class _Call:
    """A call, or one request of it, and all that was asked about it."""

    source: str
    destination: str
    request: "Request | None"
    default: Action
    decision: Decision
    permissions: Sequence[Permission]
    outranked: Sequence[Intention]

    @property
    def depends(self) -> bool:
        """Whether each request is decided about for itself, and none is described."""
        return bool(self.permissions) and self.request is None


def _explain_call(
    place: Place, source: str, destination: str, about: Asking, as_json: bool
) -> None:
    request = about.request()
    intentions, default, protocol = _in_force(place, destination)
    matching = [
        i
        for i in intentions
        if i.source in (source, WILDCARD) and i.destination in (destination, WILDCARD)
    ]
    decision = decide(matching, source, destination, default, request, protocol=protocol)
    deciding = decision.intention
    call = _Call(
        source=source,
        destination=destination,
        request=request,
        default=default,
        decision=decision,
        permissions=deciding.permissions if deciding and protocol != "tcp" else (),
        outranked=outranked(matching, decision),
    )
    if as_json:
        value = msgspec.json.encode(_call_record(call))
        click.echo(msgspec.json.format(value, indent=2).decode())
    else:
        click.echo("\n".join(_call_lines(call)))


def _call_record(call: _Call) -> dict[str, object]:
    request, decision = call.request, call.decision
    return {
        "source": call.source,
        "destination": call.destination,
        "request": request and {"method": request.method, "path": request.path},
        "allowed": decision.allowed,
        "depends_on_request": call.depends,
        "dry_run": decision.dry_run,
        "reason": decision.reason,
        "permission": decision.permission,
        "intention": decision.intention and IntentionRecord.of(decision.intention),
        "outranked": [IntentionRecord.of(other) for other in call.outranked],
    }


def _call_lines(call: _Call) -> list[str]:
    decision = call.decision
    about = f"{call.source} => {call.destination}"
    if call.request is not None:
        about += f", {call.request.method} {call.request.path}"
    verdict, reason = _verdict(decision), decision.reason
    if call.depends and decision.intention is not None:
        verdict = click.style("depends on the request", fg="yellow")
        reason = decision.intention.reference
    lines = [f"{about}: {verdict}: {reason}"]
    if call.permissions:
        lines += ["  of its permissions the first that a request matches decides:"]
        lines += [f"  {line}" for line in numbered(call.permissions, decision.permission)]
        lines += [f"    where none does, the default: {call.default}"]
    lines += [
        f"  it outranks {other}, {other.where} (precedence {precedence(other)}): "
        "of all that match, the most exact destination decides, then the most exact source"
        for other in call.outranked
    ]
    return lines


def _verdict(decision: Decision) -> str:
    if decision.dry_run:
        return click.style("allowed, for a dry run that would deny", fg="yellow")
    if decision.allowed:
        return click.style("allowed", fg="green")
    return click.style("denied", fg="red")


def _in_force(place: Place, destination: str) -> tuple[Sequence[Intention], Action, Protocol]:
    """Return the intentions, the default, and the protocol of a service.

    Of one that is not known nothing says that it will not speak HTTP.
    """
    running = place.running()
    if running is not None:
        found = [record.intention() for record in running.intentions()]
        run = running.run()
        return found, run.default_intention, run.protocols.get(destination, "http")
    from meshrun.supervisor.cli import offline

    configuration = offline.configuration_if_any(place)
    protocol = None if configuration is None else configuration.protocol(destination)
    with offline.reading_book(place, configuration) as book:
        return book.effective(), offline.default_action(configuration), protocol or "http"


def _lines(found: Explanation) -> list[str]:
    ready = "ready" if found.ready else "not ready"
    state = click.style(found.state, fg=state_colour(found.state))
    since = "" if found.since is None else f", since {_clock(found.since)}"
    lines = [f"{click.style(found.instance, bold=True)} is {state}, {ready}{since}"]
    facts = [
        ("reason", None if found.waiting_for else found.reason),
        ("waits for", ", ".join(found.waiting_for)),
        *(("where", other) for other in found.unmet),
        ("tries", str(found.tries) if found.tries and not found.ready else None),
        ("it says", found.said),
        ("last exit", found.exit),
        ("restarts", str(found.restarts) if found.restarts else None),
        ("next try", None if found.next_try_in_s is None else f"in {age(found.next_try_in_s)}"),
    ]
    lines += [f"  {name}: {fact}" for name, fact in facts if fact]
    if found.events:
        lines.append("  last events:")
        lines += [f"    {_clock(e.at)} {e.kind}: {e.message}" for e in found.events]
    if found.lines and not found.ready:
        lines.append("  last output:")
        lines += [f"    {_plain(line)}" for line in found.lines]
    return lines


def _plain(line: str) -> str:
    """Return what an app wrote in characters that a terminal only shows: no colour goes on here."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in click.unstyle(line))


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")
