"""When a run ends by itself, and with which exit code.

Pure: decided from the statuses of the apps alone.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshrun.supervisor.lifecycle import Status

__all__ = ["EndRule", "Ended", "ended"]

EXIT_OK = 0
EXIT_FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRule:
    """What ends a run besides the end of every app.

    `exit_code_from` is an app or instance whose end does, and whose exit code is the run's. With
    `abort_on_exit` the end of any app does (docker compose: `--abort-on-container-exit`).
    """

    exit_code_from: str | None = None
    abort_on_exit: bool = False

    def is_awaited(self, service: str, instance: str) -> bool:
        """Tell whether the run ends with this instance."""
        return self.exit_code_from in (service, instance)

    def runs_once(self, service: str) -> bool:
        """Tell whether an app is not started again, whatever its `restart` says.

        Else the end that is waited for would not come: a crash is started again by default.
        """
        named = self.exit_code_from is not None and service == self.exit_code_from.partition(".")[0]
        return named or self.abort_on_exit


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ends by itself; `instance` is whose end decided that, None for all."""

    code: int
    instance: str | None = None


def ended(
    rule: EndRule,
    apps: Mapping[str, tuple[str, "Status"]],
    expected: Collection[str],
    revivable: Collection[str] = (),
) -> Ended | None:
    """Return how the run ends now, None where it goes on.

    `apps` has service and status by instance. An app that is `expected` to complete, because
    another one waits for that, ends nothing by doing so. Those that are `revivable` have not ended
    for good: something starts them again.
    """
    # Not at the top: the rule is part of a plan, and who makes one need not run it.
    from meshrun.supervisor.lifecycle import Phase

    over = {
        name: (service, status)
        for name, (service, status) in apps.items()
        if status.phase in (Phase.COMPLETED, Phase.FAILED)
    }
    failed = [name for name, (_, status) in over.items() if status.phase is Phase.FAILED]
    for name, (service, status) in over.items():
        if rule.is_awaited(service, name):
            return Ended(_code(status, failed=name in failed), name)
    if rule.abort_on_exit:
        completed = [name for name, (service, _) in over.items() if service not in expected]
        for name in (*failed, *completed):
            # The app whose code is wanted has none yet, and will not come to give one.
            code = EXIT_FAILED if failed or rule.exit_code_from is not None else EXIT_OK
            return Ended(code, name)
    if apps and len(over) == len(apps) and not over.keys() & set(revivable):
        return Ended(EXIT_FAILED if failed else EXIT_OK)
    return None


def _code(status: "Status", *, failed: bool) -> int:
    """Return its exit code, 128 + the signal as a shell does; what never ran has failed with 1."""
    code = EXIT_OK if status.exit is None else status.exit.status
    return code or (EXIT_FAILED if failed else EXIT_OK)
