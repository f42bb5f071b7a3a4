"""honcho, which runs a Procfile."""

import shlex
from collections.abc import Sequence

from benchmarks.managers.manager import Commands, Manager

__all__ = ["Honcho"]


class Honcho(Manager):
    """As delivered. It restarts nothing: when one app ends, it ends all the others."""

    name = "honcho"
    distribution = "honcho"
    restarts = False

    def configuration(self, apps: Commands) -> tuple[str, str]:
        """Return a Procfile with a line for each app."""
        return "Procfile", "".join(f"{name}: {shlex.join(words)}\n" for name, words in apps.items())

    def command(self) -> Sequence[str]:
        """Return the command that runs the Procfile."""
        return ["honcho", "start", "-f", "Procfile"]
