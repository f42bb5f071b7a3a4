"""What every process manager offers to be measured."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.programs import BenchmarkError

__all__ = ["Commands", "Manager"]

# What each app is to run, by the app's name: words that no shell needs to see.
Commands = Mapping[str, Sequence[str]]


class Manager(ABC):
    """A process manager that runs apps in the foreground and ends them on SIGTERM.

    `restarts` tells whether it starts an app again that was killed. Of its processes, those whose
    name begins with `sidecar_name` are sidecars of apps; None where it has no such thing. `decides`
    tells whether it decides who may call whom.
    """

    name: str
    distribution: str
    restarts: bool = True
    sidecar_name: str | None = None
    decides: bool = False

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    @abstractmethod
    def configuration(self, apps: Commands) -> tuple[str, str]:
        """Return the name of its file and what stands in it."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the program and its arguments, to be run in the folder of its file."""

    def status_command(self) -> Sequence[str] | None:
        """Return the command that shows every app, None where there is none."""
        return None

    def reload_command(self) -> Sequence[str] | None:
        """Return the command that has a changed file applied, None where there is none."""
        return None

    def decide(self, folder: Path, *, allowed: bool) -> None:
        """Allow or deny all calls; returns when that holds. Raises BenchmarkError."""
        raise BenchmarkError(f"cannot decide about calls under {self.name}: it knows of none")

    def await_sidecars(  # noqa: B027 - most have none
        self, folder: Path, timeout_s: float
    ) -> None:
        """Return once what it runs beside the apps is ready too, at once where that is nothing.

        Raises BenchmarkError if it is not ready in time.
        """
