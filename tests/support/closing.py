"""What is closed at the end of a block."""

from abc import ABC, abstractmethod
from typing import Self

__all__ = ["Closing"]


class Closing(ABC):
    """A base of what has a `close`."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
