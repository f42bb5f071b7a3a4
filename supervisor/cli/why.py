"""`meshrun why`: why an app is in its state, or why a call is allowed or denied."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import click
import msgspec

from meshrun.proxy.intentions import WILDCARD, Action, Decision, Intention, decide, precedence
from meshrun.supervisor.cli.columns import age
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.ps import state_colour
from meshrun.supervisor.cli.records import Explanation, IntentionRecord

__all__ = ["outranked", "why"]


@click.command()
@click.argument("app", metavar="APP | SRC")
@click.argument("destination", metavar="[DST]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print an object, or a list of them.")
@click.pass_obj
def why(place: Place, app: str, destination: str | None, as_json: bool) -> None:
    """Explain the state of APP, or whether SRC may call DST.

    \b
    meshrun why web       why each instance of web runs, waits or fails
    meshrun why web db    which intention decides about web calling db, and how

    The second works where no mesh runs, too.
    """
    if destination is not None:
        _explain_call(place, app, destination, as_json)
        return
    explanations = place.client().why(app)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(explanations), indent=2).decode())
    else:
        click.echo("\n\n".join("\n".join(_lines(found)) for found in explanations))


def outranked(intentions: Iterable[Intention], decision: Decision) -> list[Intention]:
    """Return the intentions that match the pair too, but count less than the deciding one."""
    deciding = decision.intention
    return [i for i in intentions if deciding is not None and i.pair != deciding.pair]


def _explain_call(place: Place, source: str, destination: str, as_json: bool) -> None:
    intentions, default = _in_force(place)
    matching = [
        i
        for i in intentions
        if i.source in (source, WILDCARD) and i.destination in (destination, WILDCARD)
    ]
    decision = decide(matching, source, destination, default)
    others = outranked(matching, decision)
    if as_json:
        value = {
            "source": source,
            "destination": destination,
            "allowed": decision.allowed,
            "reason": decision.reason,
            "intention": decision.intention and IntentionRecord.of(decision.intention),
            "outranked": [IntentionRecord.of(other) for other in others],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        return
    verdict = (
        click.style("allowed", fg="green") if decision.allowed else click.style("denied", fg="red")
    )
    click.echo(f"{source} => {destination}: {verdict}: {decision.reason}")
    for other in others:
        click.echo(
            f"  it outranks {other}, {other.where} (precedence {precedence(other)}): "
            "of all that match, the most exact destination decides, then the most exact source"
        )


def _in_force(place: Place) -> tuple[Sequence[Intention], Action]:
    running = place.running()
    if running is not None:
        records = running.intentions()
        return [record.intention() for record in records], running.run().default_intention
    from meshrun.supervisor.cli import offline

    configuration = offline.configuration_if_any(place)
    with offline.reading_book(place, configuration) as book:
        return book.effective(), offline.default_action(configuration)


def _lines(found: Explanation) -> list[str]:
    ready = "ready" if found.ready else "not ready"
    state = click.style(found.state, fg=state_colour(found.state))
    lines = [f"{click.style(found.instance, bold=True)} is {state}, {ready}"]
    facts = [
        ("reason", found.reason),
        ("waits for", ", ".join(found.waiting_for)),
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
        lines += [f"    {line}" for line in found.lines]
    return lines


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")
