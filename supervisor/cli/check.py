"""`meshrun check`: what mesh.toml would start, without starting it."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from meshrun.supervisor.cli.columns import table
from meshrun.supervisor.cli.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshrun.proxy.intentions import Action, Intention
    from meshrun.supervisor.plan import Instance, Plan, PlannedUpstream
    from meshrun.supervisor.ports import Wish

__all__ = ["Call", "calls", "check"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Whether a service may call another; `declared` if it has it as an upstream.

    With `per_request` an intention's permissions decide about each HTTP request.
    """

    source: str
    destination: str
    declared: bool
    allowed: bool
    reason: str
    by_default: bool
    per_request: bool = False


@click.command(short_help="Check mesh.toml and print the plan; start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as an object.")
@click.pass_obj
def check(place: Place, as_json: bool) -> None:
    """Check mesh.toml and print the plan: instances, ports, upstreams, and who may call whom.

    Starts nothing. Every mistake is printed with its line and column, and the command exits 2. What
    is no mistake of the file is a warning: a fixed port that somebody else has, or `$PORT` in a
    command where only `${PORT}` is expanded.

    \b
    meshrun check
    meshrun -f other/mesh.toml check
    """
    from meshrun.supervisor.advice import advice
    from meshrun.supervisor.cli import offline
    from meshrun.supervisor.ports import Wish

    configuration = place.configuration()
    busy: list[tuple[Wish, int]] = []
    plan = offline.plan(place, configuration, offline.remembered_ports(place), busy)
    with offline.reading_book(place, configuration) as book:
        intentions = book.effective()
    decided = calls(plan, intentions, configuration.mesh.default_intention)
    if as_json:
        click.echo(_json(plan, decided))
    else:
        click.echo("\n\n".join(_text(plan, decided)))
    for sentence in (*advice(plan), *_taken(busy)):
        click.echo(click.style(f"warning: {sentence}", fg="yellow"), err=True)


def calls(plan: "Plan", intentions: "Sequence[Intention]", default: "Action") -> list[Call]:
    """Decide about every pair of services of which the second takes calls."""
    from meshrun.proxy.intentions import decide

    declared = {(i.service, s) for i in plan.instances for u in i.upstreams for s in u.called}
    callable_services = [s for s in plan.services if plan.of(s)[0].inbound_port is not None]
    found = []
    for source in plan.services:
        for destination in callable_services:
            # An external service starts no calls; an app reaches itself without its sidecar.
            if source == destination or plan.of(source)[0].app is None:
                continue
            protocol = plan.of(destination)[0].protocol
            decision = decide(intentions, source, destination, default, protocol=protocol)
            deciding = decision.intention
            per_request = bool(deciding and deciding.permissions) and protocol != "tcp"
            found.append(
                Call(
                    source=source,
                    destination=destination,
                    declared=(source, destination) in declared,
                    allowed=decision.allowed,
                    reason=deciding.reference if deciding and per_request else decision.reason,
                    by_default=deciding is None,
                    per_request=per_request,
                )
            )
    return found


def _taken(busy: "Iterable[tuple[Wish, int]]") -> "Iterator[str]":
    from meshrun.supervisor.listeners import owner_of

    for wish, port in busy:
        yield f"port {port} of {wish.holder} is in use by {owner_of(port)}"


def _text(plan: "Plan", decided: Iterable[Call]) -> list[str]:
    mesh = plan.configuration.mesh
    parts = [
        f"{plan.configuration.file} is valid: mesh {mesh.name}, trust domain {mesh.trust_domain}, "
        f"default {mesh.default_intention}",
        _instances(plan.instances),
    ]
    upstreams = _upstreams(plan.instances)
    shown = _calls(decided)
    parts += [upstreams] if upstreams else []
    parts += [shown] if shown else []
    return parts


def _instances(instances: "Iterable[Instance]") -> str:
    rows = [
        [
            instance.name,
            instance.protocol,
            _port(instance.port) if instance.app is not None else _address(instance),
            _port(instance.inbound_port),
            str(instance.identity),
            shlex.join(instance.argv) if instance.app is not None else "(external)",
        ]
        for instance in instances
    ]
    return table(["INSTANCE", "PROTOCOL", "PORT", "SIDECAR PORT", "IDENTITY", "COMMAND"], rows)


def _port(port: int | None) -> str:
    return "" if port is None else str(port)


def _address(instance: "Instance") -> str:
    assert instance.target is not None
    host, port = instance.target
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _upstreams(instances: "Iterable[Instance]") -> str | None:
    from meshrun.supervisor.environment import variable_name

    rows = [
        [
            instance.name,
            _shares(upstream),
            f"127.0.0.1:{upstream.port}",
            f"UPSTREAM_{variable_name(upstream.name)}_ADDR",
        ]
        for instance in instances
        for upstream in instance.upstreams
    ]
    return table(["INSTANCE", "UPSTREAM", "ADDRESS", "VARIABLE"], rows) if rows else None


def _shares(upstream: "PlannedUpstream") -> str:
    """Show a split as `reviews (reviews 90, reviews-v2 10)`."""
    shares = ", ".join(f"{share.service} {share.weight}" for share in upstream.split)
    return f"{upstream.service} ({shares})" if shares else upstream.service


def _calls(decided: Iterable[Call]) -> str | None:
    """Show the calls that the file provides for, and those that an intention allows besides."""
    rows = [
        [
            f"{call.source} => {call.destination}",
            _verdict(call),
            call.reason if call.declared else f"{call.reason} (not an upstream)",
        ]
        for call in decided
        if call.declared or ((call.allowed or call.per_request) and not call.by_default)
    ]
    return table(["CALL", "", "BY"], rows) if rows else None


def _verdict(call: Call) -> str:
    if call.per_request:
        return click.style("per request", fg="yellow")
    return click.style("allowed", fg="green") if call.allowed else click.style("denied", fg="red")


def _json(plan: "Plan", decided: Iterable[Call]) -> str:
    import msgspec

    mesh = plan.configuration.mesh
    value = {
        "file": plan.configuration.file,
        "mesh": mesh.name,
        "trust_domain": mesh.trust_domain,
        "default_intention": mesh.default_intention,
        "instances": [_instance_json(instance) for instance in plan.instances],
        "calls": list(decided),
    }
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _instance_json(instance: "Instance") -> dict[str, object]:
    return {
        "app": instance.service,
        "instance": instance.name,
        "external": instance.app is None,
        "protocol": instance.protocol,
        "port": instance.port,
        "address": _address(instance) if instance.target is not None else None,
        "sidecar_port": instance.inbound_port,
        "workers": instance.workers,
        "identity": str(instance.identity),
        "command": instance.argv,
        "cwd": instance.cwd,
        "upstreams": [
            {
                "name": u.name,
                "service": u.service,
                "address": f"127.0.0.1:{u.port}",
                "split": {share.service: share.weight for share in u.split},
            }
            for u in instance.upstreams
        ],
    }
