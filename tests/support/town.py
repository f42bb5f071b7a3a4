"""The mesh of the chaos run: a file that can be written in many ways, all of them valid.

Every app dies of INT, which only meshrun sends, as of any signal (`tests/apps/alone.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["CALLEES", "CALLERS", "FOREVER_DENIED", "PAIRS", "RESTARTABLE", "SCALABLE", "Town"]

# What each app calls, and how; the rest takes calls or does neither.
CALLERS: Mapping[str, Mapping[str, str]] = {
    "caller": {"tcp": "tcp", "web": "http", "middle": "http", "fragile": "tcp", "outside": "tcp"},
    "middle": {"tcp": "tcp", "web": "http"},
    "extra": {"tcp": "tcp", "web": "http"},
    "stranger": {"web": "http"},
}
CALLEES = ("tcp", "web", "middle", "fragile")
SCALABLE = ("tcp", "web")
RESTARTABLE = ("tcp", "web", "middle", "caller", "daemon", "fragile")
# There is no intention for these, and calls all the same.
FOREVER_DENIED = [("stranger", "web")]
PAIRS = [
    (source, destination)
    for source, upstreams in CALLERS.items()
    for destination in upstreams
    if (source, destination) not in FOREVER_DENIED
]

_ALONE = "${PYTHON} -S ${APPS}/alone.py"
_APPS: Mapping[str, str] = {
    "tcp": f"""
command = "{_ALONE} serve.py --mode echo"
ready = {{ tcp = true, interval = "1s" }}
""",
    "web": f"""
command = "{_ALONE} web.py"
protocol = "http"
ready = {{ http = "/bytes/1", interval = "1s" }}
alive = {{ http = "/bytes/1", interval = "1s", failures = 2 }}
depends_on = {{ tcp = "started" }}
""",
    "fragile": f"""
command = "{_ALONE} serve.py --mode echo"
ready = {{ log = "listening" }}
restart = "never"
""",
    # Its calls are made by a child in its session, which ends with it.
    "middle": """
command = "$PYTHON -S $APPS/steady.py %s & exec $PYTHON -S $APPS/alone.py web.py"
shell = true
protocol = "http"
ready = { http = "/bytes/1", interval = "1s" }
depends_on = { job = "succeeded", tcp = "ready" }
""",
    "job": """
command = "true"
port = 0
restart = "never"
""",
    "caller": f"""
command = "{_ALONE} steady.py %s"
port = 0
depends_on = {{ tcp = "ready", web = "ready" }}
""",
    # Leaves somebody behind in a session of his own, and has a command for a probe.
    "daemon": f"""
command = "{_ALONE} idle.py --fork-twice"
port = 0
ready = {{ exec = "sleep 0.1", interval = "1s" }}
depends_on = {{ fragile = {{ condition = "started", on_restart = "restart" }} }}
""",
    "stranger": f"""
command = "{_ALONE} steady.py %s"
port = 0
""",
    "extra": f"""
command = "{_ALONE} steady.py %s"
port = 0
""",
}


@dataclass(frozen=True)
class Town:
    """One way to write the file; `outside_port` is where the external service listens.

    `notes` are values in the environment of apps: another one restarts them.
    """

    outside_port: int
    instances: Mapping[str, int] = field(
        default_factory=lambda: {"tcp": 2, "web": 3, "middle": 2, "caller": 2}
    )
    workers: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    max_connections: int = 1000
    with_extra: bool = False

    def __str__(self) -> str:
        """Return the file."""
        apps = (name for name in _APPS if name != "extra" or self.with_extra)
        return "".join(
            [
                '[mesh]\nname = "chaos"\nleaf_ttl = "2m"\n',
                *map(self._app, apps),
                f'[services.outside]\naddress = "127.0.0.1:{self.outside_port}"\n',
                *(
                    f'[[intentions]]\nfrom = "{source}"\nto = "{destination}"\n'
                    for source, destination in PAIRS
                    if source != "extra" or self.with_extra
                ),
            ]
        )

    def _app(self, name: str) -> str:
        called = CALLERS.get(name, {})
        body = _APPS[name]
        if called:
            body %= " ".join(f"{other}={protocol}" for other, protocol in called.items())
        upstreams = ", ".join(
            f'{{ service = "{other}", max_connections = {self.max_connections} }}'
            for other in called
        )
        return (
            f"[apps.{name}]{body}"
            f"instances = {self.instances.get(name, 1)}\n"
            f"workers = {self.workers.get(name, 1)}\n"
            f'env = {{ NOTE = "{self.notes.get(name, 0)}" }}\n'
            'stop = { signal = "INT", timeout = "4s" }\n'
            f"upstreams = [{upstreams}]\n"
        )
