"""`meshrun ps`: the instances of the running mesh."""

import click
import msgspec

from meshrun.supervisor.cli.columns import age, size, table
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.records import InstanceRow

__all__ = ["ps", "state_colour"]

HEADING = [
    *("INSTANCE", "STATE", "READY", "PID", "PORT", "RESTARTS", "UPTIME", "CPU", "MEMORY"),
    *("SIDECAR PID", "SIDECAR PORT", "SIDECAR MEM", "REASON"),
]

_COLOURS = {
    "running": "green",
    "completed": "green",
    "external": "green",
    "waiting": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "backoff": "red",
    "crash-loop": "red",
    "failed": "red",
}


@click.command(short_help="Show every instance: its state, ports and use of the machine.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one an instance.")
@click.pass_obj
def ps(place: Place, as_json: bool) -> None:
    """Show every instance: its state, ports and use of the machine, and its sidecar's.

    A command that runs by `meshrun run` is a row, too. A sidecar's memory is its proportional share
    (PSS). Exits 1 where no mesh runs.

    \b
    meshrun ps
    meshrun ps --json | jq -r '.[] | select(.ready | not) | .instance'
    """
    rows = place.client().instances()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    cells = [_cells(row) for row in rows]
    heading = HEADING
    if not any(row[-1] for row in cells):
        heading, cells = heading[:-1], [row[:-1] for row in cells]
    click.echo(table(heading, cells))


def state_colour(state: str) -> str | None:
    """Return the colour in which a state is shown."""
    return _COLOURS.get(state)


def _cells(row: InstanceRow) -> list[str]:
    return [
        row.instance,
        click.style(row.state, fg=state_colour(row.state)),
        "yes" if row.ready else "no",
        _shown(row.pid),
        _shown(row.port),
        str(row.restarts),
        "" if row.uptime_s is None else age(row.uptime_s),
        "" if row.cpu_percent is None else f"{row.cpu_percent:.1f}%",
        "" if row.memory_bytes is None else size(row.memory_bytes),
        _shown(row.sidecar_pid),
        _shown(row.sidecar_port),
        "" if row.sidecar_memory_bytes is None else size(row.sidecar_memory_bytes),
        _reason(row),
    ]


def _shown(number: int | None) -> str:
    return "" if number is None else str(number)


def _reason(row: InstanceRow) -> str:
    parts = [row.reason or ""]
    if row.next_try_in_s is not None:
        parts.append(f"next try in {age(row.next_try_in_s)}")
    if row.sidecar_state not in (None, "running"):
        parts.append(f"sidecar {row.sidecar_state}")
    return ", ".join(part for part in parts if part)
