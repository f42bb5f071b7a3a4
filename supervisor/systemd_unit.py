"""Units of systemd that run a mesh on a machine of its own: systemd.service(5), systemd.socket(5).

Pure: what stands in them is decided here, `meshrun export systemd` finds out what is to be run.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from meshrun.supervisor.errors import MeshrunError

__all__ = ["HEADER", "USER_NAME", "Service", "service", "sockets", "unit_name"]

# The first line, by which a file of ours is known.
HEADER = "# Written by meshrun export systemd"
# What systemd.exec(5) takes as User= in every version, under "User/Group Name Syntax".
USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}|[0-9]{1,10}", re.ASCII)
HOST = "127.0.0.1"
# A loop that does not come round within it serves nobody; starting many apps blocks it for less.
WATCHDOG_S = 30
# Beyond what the apps may take: records, files, and a machine under load.
STOP_MARGIN_S = 10
# What PrivateTmp= hides from the service.
TEMPORARY = (PurePath("/tmp"), PurePath("/var/tmp"))  # noqa: S108 - nothing is written there


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a unit runs; `meshrun` is a command, whose first word is absolute, without arguments.

    `user` is None for root. `writable` are the folders that meshrun and the apps write to, `ports`
    the fixed ports of upstreams, `search` the folders in which programs are looked for,
    `longest_stop_s` how long the mesh needs to stop at most.
    """

    mesh: str
    meshrun: tuple[str, ...]
    arguments: tuple[str, ...]
    folder: str
    user: str | None
    writable: tuple[str, ...]
    search: tuple[str, ...]
    ports: tuple[int, ...]
    longest_stop_s: float


_SERVICE = """\
{header}

[Unit]
Description=meshrun: the mesh {mesh}
After=network.target
{requires}
[Service]
# Started once every app is ready or has completed, or one has failed: that one is tried again,
# and the others are served. An app that does not get ready is ended after its `deadline`.
Type=notify
NotifyAccess=main
TimeoutStartSec=infinity
ExecStart={start}
# Returns when mesh.toml is applied, and fails where that has a mistake, which changes nothing.
ExecReload={reload}
WorkingDirectory={folder}
{user}
{search}
# A mesh that broke is started again; a mistake in mesh.toml (exit code 2) is not tried twice.
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=1
# The supervisor says so often that its event loop goes round.
WatchdogSec={watchdog_s}
# An app that was out of memory is started again by meshrun, and is no end of the mesh.
OOMPolicy=continue

# TERM goes to the supervisor alone, which stops the apps in their order. What is left after the
# time that their `stop` can take is killed.
KillMode=mixed
TimeoutStopSec={stop_s}
# The run and each app have a cgroup of their own below the service's: by it they are ended as a
# whole, and `limits` hold (ProtectControlGroups= would prevent that).
Delegate=yes

# Of the files all is read-only but these folders, /dev, /proc and /sys. Add those that your apps
# write to elsewhere.
ProtectSystem=strict
{writable}
{private_tmp}
# Nothing that is run here gets more rights than the service has (sudo, setuid programs). meshrun
# needs none of that to start an app as another `user`.
NoNewPrivileges=yes
# The kernel is no app's business. What some programs need is not restricted: JIT compilers would
# break with MemoryDenyWriteExecute=, graphics with PrivateDevices=, browsers with
# RestrictNamespaces=.
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectHostname=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""

_SOCKET = """\
{header}

[Unit]
Description=meshrun: fixed upstream ports of the mesh {mesh}

[Socket]
# Open as long as the machine runs: nobody else takes these ports while the mesh is restarted, and
# who connects meanwhile waits. A connection starts a mesh that was stopped.
{ports}
Service={name}.service

[Install]
WantedBy=sockets.target
"""


def unit_name(mesh: str) -> str:
    """Return the name of the units of a mesh, without suffix; names of meshes are safe in it."""
    return f"meshrun-{mesh}"


def service(given: Service) -> str:
    """Return the service unit. Raises MeshrunError for a path that no unit can hold."""
    socket = f"{unit_name(given.mesh)}.socket"
    command = (*given.meshrun, *given.arguments)
    return _SERVICE.format(
        header=HEADER,
        mesh=_plain(given.mesh),
        requires=f"Requires={socket}\nAfter={socket}\n" if given.ports else "",
        start=_command((*command, "up")),
        reload=_command((*command, "reload")),
        folder=_path(given.folder),
        user=_user(given),
        search=_search(given),
        watchdog_s=WATCHDOG_S,
        stop_s=math.ceil(given.longest_stop_s) + STOP_MARGIN_S,
        writable="\n".join(f"ReadWritePaths={_quoted(path)}" for path in given.writable),
        private_tmp=_private_tmp(given),
    )


def sockets(given: Service) -> str | None:
    """Return the socket unit, None where no upstream has a port of its own choice."""
    if not given.ports:
        return None
    return _SOCKET.format(
        header=HEADER,
        mesh=_plain(given.mesh),
        ports="\n".join(f"ListenStream={HOST}:{port}" for port in given.ports),
        name=unit_name(given.mesh),
    )


def _user(given: Service) -> str:
    if given.user is None:
        return "# As root: name a user with --user, unless the apps have a `user` of their own."
    return f"User={given.user}"


def _search(given: Service) -> str:
    if not given.search:
        return ""
    path = ":".join(given.search)
    return (
        "# Where the programs of apps are looked for: as in the shell that wrote this.\n"
        f"Environment={_quoted(f'PATH={path}')}\n"
    )


def _private_tmp(given: Service) -> str:
    used = (given.folder, given.meshrun[0], *given.writable)
    if any(PurePath(path).is_relative_to(tmp) for path in used for tmp in TEMPORARY):
        return "# No PrivateTmp=: it would hide what this service needs in /tmp."
    return "# A /tmp of its own, which the apps share.\nPrivateTmp=yes"


def _checked(text: str) -> str:
    """Refuse what ends a line or cannot be UTF-8: systemd drops such a line as a whole."""
    if any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in text):
        raise MeshrunError(
            f"cannot write {text!r} into a unit: it has a control character or is not UTF-8"
        )
    return text


def _plain(text: str) -> str:
    """Escape for a setting that takes all of its line; `%` begins a specifier everywhere."""
    return _checked(text).replace("%", "%%")


def _path(path: str) -> str:
    """Return a path for a setting that takes all of its line and knows no quotes."""
    if path != path.strip() or path.endswith("\\"):
        raise MeshrunError(f"cannot write {path!r} into a unit: it ends in a blank or a backslash")
    return _plain(path)


def _quoted(text: str) -> str:
    """Return one word, for a setting that takes several: systemd.syntax(7), "Quoting"."""
    escaped = _plain(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if re.search(r"""[\s"'\\;]""", text) or not text else escaped


def _command(words: Sequence[str]) -> str:
    """Return a command line: `$` begins a variable there (systemd.service(5), "COMMAND LINES").

    Not in the program, in which systemd allows no quotes and backslashes, however they are written.
    """
    program, *arguments = words
    if re.search(r"""["'\\]""", program):
        raise MeshrunError(
            f"cannot run {program} from a unit: systemd takes no program whose path has quotes or "
            "backslashes; install meshrun elsewhere"
        )
    return " ".join([_quoted(program), *(_quoted(word).replace("$", "$$") for word in arguments)])
