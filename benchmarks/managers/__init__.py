"""Process managers that run the same apps, each from a configuration as its users write it.

`manager` says what every one of them offers. `crew` has the apps: it makes them and hears them say
that they run. `running` starts a manager with a crew, reads what it costs and ends it.
"""

from benchmarks.managers.honcho import Honcho
from benchmarks.managers.manager import Manager
from benchmarks.managers.meshrun import Meshrun
from benchmarks.managers.supervisord import Supervisord

__all__ = ["MANAGERS", "Honcho", "Manager", "Meshrun", "Supervisord"]

MANAGERS: tuple[Manager, ...] = (Meshrun(), Supervisord(), Honcho())
