"""What the supervisor and the commands could not do, as types that a caller can act on."""

from collections.abc import Sequence
from dataclasses import dataclass

from meshrun.proxy.errors import MeshrunError

__all__ = [
    "ConfigError",
    "Finding",
    "MeshrunError",
    "NotRunningError",
    "StoppingError",
    "UnknownNameError",
]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong in a file; line and column are 1-based, 0 where there is none."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        if not self.line:
            return f"{self.file}: {self.message}"
        if not self.column:
            return f"{self.file}:{self.line}: {self.message}"
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ConfigError(MeshrunError):
    """A configuration that cannot be run; `findings` has everything that is wrong with it."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


class NotRunningError(MeshrunError):
    """No supervisor answers in the state folder."""


class StoppingError(MeshrunError):
    """The run is being ended."""


class UnknownNameError(MeshrunError):
    """No app or instance of this run has that name."""
