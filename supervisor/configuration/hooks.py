"""What `hooks` of an app says: commands beside it, and how long they may take."""

from meshrun.supervisor.configuration.model import Hooks
from meshrun.supervisor.configuration.tables import Table, dotted
from meshrun.supervisor.configuration.values import wait, word, words

__all__ = ["KEYS", "read_hooks"]

KEYS = ("on_ready", "on_exit", "timeout")


def read_hooks(table: Table) -> Hooks:
    """Read `hooks` of an app."""
    hooks = table.table("hooks", '{ on_ready = "./announce", on_exit = ["./clean-up", "--all"] }')
    if hooks is None:
        return Hooks()
    hooks.allow(KEYS)
    if "on_ready" not in hooks and "on_exit" not in hooks:
        hooks.document.report_value(hooks.path, f"{dotted(hooks.path)} needs on_ready or on_exit")
    return Hooks(
        on_ready=_read_command(hooks, "on_ready"),
        on_exit=_read_command(hooks, "on_exit"),
        timeout_s=hooks.read("timeout", wait, Hooks().timeout_s),
    )


def _read_command(hooks: Table, key: str) -> tuple[str, ...]:
    found = enumerate(hooks.read(key, words, ()))
    return tuple(hooks.fitted(each, (*hooks.path, key, i), word, "") for i, each in found)
