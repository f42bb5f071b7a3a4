"""supervisord, in the foreground."""

import shlex
from collections.abc import Sequence

from benchmarks.managers.manager import Commands, Manager

__all__ = ["Supervisord"]

# With the control socket of its sample configuration: meshrun has one too.
HEAD = """\
[supervisord]
nodaemon=true
logfile=%(here)s/supervisord.log
pidfile=%(here)s/supervisord.pid
childlogdir=%(here)s

[unix_http_server]
file=%(here)s/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://%(here)s/supervisor.sock
"""
CONFIGURATION = "supervisord.conf"
CONTROL = ("supervisorctl", "-c", CONFIGURATION)


class Supervisord(Manager):
    """As delivered, but that it restarts whatever ends (`autorestart=true`); `startsecs` is 1."""

    name = "supervisord"
    distribution = "supervisor"

    def configuration(self, apps: Commands) -> tuple[str, str]:
        """Return a configuration with a program for each app."""
        programs = [
            f"[program:{name}]\ncommand={shlex.join(words)}\nautorestart=true\n"
            for name, words in apps.items()
        ]
        return CONFIGURATION, "\n".join([HEAD, *programs])

    def command(self) -> Sequence[str]:
        """Return the command that runs it in the foreground."""
        return ["supervisord", "-n", "-c", CONFIGURATION]

    def status_command(self) -> Sequence[str]:
        """Return the command that shows every program."""
        return [*CONTROL, "status"]

    def reload_command(self) -> Sequence[str]:
        """Return the command that reads the file again, and restarts what has changed."""
        return [*CONTROL, "update"]
