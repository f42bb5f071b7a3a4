"""The environment of one instance: what meshrun puts in, and what wins over what."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshrun.supervisor.configuration.model import Protocol
from meshrun.supervisor.sdnotify import VARIABLES as KEEPER

__all__ = [
    "HOOK_VARIABLES",
    "UpstreamAddress",
    "effective",
    "hook_variables",
    "injected",
    "notify_variables",
    "upstream_variables",
    "variable_name",
    "variables",
]

_OTHER = re.compile(r"[^A-Z0-9]")
HOOK_VARIABLES = (
    "MESHRUN_HOOK",
    "MESHRUN_EXIT_CODE",
    "MESHRUN_EXIT_SIGNAL",
    "MESHRUN_WILL_RESTART",
)
"""All that a hook may find in its environment beside what its app does."""

_RUN_ID = "MESHRUN_RUN_ID"
_UNBUFFERED = "PYTHONUNBUFFERED"
# What every terminal that one looks at today can do.
_TERMINAL = "xterm-256color"


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """Where an app reaches the upstream `name`; `protocol` is that of the service behind it."""

    name: str
    host: str
    port: int
    protocol: Protocol = "tcp"


def variable_name(upstream: str) -> str:
    """Return the `<NAME>` of `UPSTREAM_<NAME>_ADDR`: capitals, every other character `_`."""
    return _OTHER.sub("_", upstream.upper())


def upstream_variables(upstream: UpstreamAddress) -> dict[str, str]:
    """Return the variables that lead to one upstream; a URL only where it speaks HTTP."""
    prefix = f"UPSTREAM_{variable_name(upstream.name)}"
    host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
    address = f"{host}:{upstream.port}"
    values = {
        f"{prefix}_ADDR": address,
        f"{prefix}_HOST": upstream.host,
        f"{prefix}_PORT": str(upstream.port),
    }
    if upstream.protocol != "tcp":
        values[f"{prefix}_URL"] = f"http://{address}"
    return values


def injected(
    *,
    app: str,
    instance: str,
    identity: str,
    run_id: str | None,
    port: int | None,
    upstreams: Iterable[UpstreamAddress],
) -> dict[str, str]:
    """Return what meshrun tells one instance, such as `web.1`.

    No `port`, or 0, leaves PORT out; no `run_id` leaves the run's marker out.
    """
    values = {"PORT": str(port)} if port else {}
    for upstream in upstreams:
        values |= upstream_variables(upstream)
    values |= {"MESHRUN_APP": app, "MESHRUN_INSTANCE": instance, "MESHRUN_IDENTITY": identity}
    if run_id is not None:
        values[_RUN_ID] = run_id
    return values


def notify_variables(address: str, keep_alive_s: float | None) -> dict[str, str]:
    """Return what sd_notify(3) and sd_watchdog_enabled(3) look for.

    `keep_alive_s` is how often, at least, the app must say that it is alive; None asks for nothing.
    """
    values = {"NOTIFY_SOCKET": address}
    if keep_alive_s is not None:
        values["WATCHDOG_USEC"] = str(round(keep_alive_s * 1_000_000))
    return values


def hook_variables(
    hook: str, code: int | None, signal_name: str | None, restarts: bool | None
) -> dict[str, str]:
    """Return what is told to a hook; of how its app ended, only what there is to tell."""
    will_restart = None if restarts is None else "yes" if restarts else "no"
    values = (hook, None if code is None else str(code), signal_name, will_restart)
    told = zip(HOOK_VARIABLES, values, strict=True)
    return {name: value for name, value in told if value is not None}


def effective(
    caller: Mapping[str, str],
    env_file: Mapping[str, str],
    env: Mapping[str, str],
    injected: Mapping[str, str],
    *,
    terminal: bool = False,
) -> dict[str, str]:
    """Lay the four over each other, the last one wins; `terminal` is whether the app writes to one.

    With an empty `env` this is what `${NAME}` is looked up in. The caller's PORT and run marker
    are never handed on: a port is given only to an app that has one, and a mesh started inside
    another one is not part of it. Nor is the socket on which the caller speaks to its own keeper,
    or what it was told as a hook.
    """
    own = (*KEEPER, *HOOK_VARIABLES)
    handed_on = {name: value for name, value in caller.items() if name not in own}
    values = {**handed_on, **env_file, **env, **injected}
    for name in ("PORT", _RUN_ID):
        if name not in injected:
            values.pop(name, None)
    values.setdefault(_UNBUFFERED, "1")
    if terminal:
        values.setdefault("TERM", _TERMINAL)
    return values


def variables(upstreams: Iterable[tuple[str, Protocol]], *, has_port: bool) -> dict[str, str]:
    """Return the names, with empty values, that any instance of such an app gets injected.

    `env` must not set them; PYTHONUNBUFFERED, which it may, is not among them.
    """
    values = injected(
        app="",
        instance="",
        identity="",
        run_id="",
        port=1 if has_port else None,
        upstreams=[UpstreamAddress(name, "", 0, protocol) for name, protocol in upstreams],
    )
    return dict.fromkeys(values, "")
