"""Whatever the sections hold, they are read, or refused with the place of every mistake."""

import json

from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.sections import (
    intention_id,
    mesh_name,
    read_app,
    read_intentions,
    read_mesh,
    read_services,
)
from meshrun.supervisor.configuration.tables import Document, Table
from meshrun.supervisor.configuration.toml_positions import locate
from meshrun.supervisor.machine import ThisMachine

KEYS = st.sampled_from(
    [
        *("mesh", "apps", "services", "intentions", "web", "api", "name", "ports", "leaf_ttl"),
        *("command", "shell", "env", "port", "instances", "upstreams", "service", "as", "ready"),
        *("depends_on", "http", "tcp", "exec", "interval", "stop", "signal", "timeout", "restart"),
        *("alive", "log", "notify", "successes", "deadline", "condition", "on_restart"),
        *("watch", "paths", "ignore", "debounce"),
        *("address", "protocol", "from", "to", "action", "methods", "\u001b[2J", ""),
        *("workers", "max_connections", "idle_timeout", "request_timeout", "retries", "split"),
        *("max_requests", "max_pending", "ejection", "failures", "set_headers", "remove_headers"),
        *("path_exact", "path_prefix", "path_regex", "headers", "permissions", "dry_run"),
        *("present", "exact", "regex", "invert", "ignore_case"),
    ]
)
SCALARS = st.sampled_from(
    [
        *(0, 1, -1, 8080, 10**20, True, False, 0.5, "", "web", "api", "*", "10s", "1-2", "${A}"),
        *("'", "GET", "deny", "/a", "/a/../b", "(", "x-role", "_"),
        *("restart", "HUP", "**/*.py", "!a"),
    ]
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=10,
)
TABLES = st.dictionaries(KEYS, TREES, max_size=6)


def inline(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)} = {inline(v)}' for k, v in value.items())}}}"
    return json.dumps(value)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "mesh": TABLES | TREES,
            "apps": st.dictionaries(KEYS, TABLES | TREES, max_size=3) | TREES,
            "services": st.dictionaries(KEYS, TABLES | TREES, max_size=3) | TREES,
            "intentions": st.lists(TABLES | TREES, max_size=3) | TREES,
        },
    )
)
def test_any_sections_are_read_or_refused_with_places(values: dict[str, object]) -> None:
    text = "".join(f"{json.dumps(key)} = {inline(value)}\n" for key, value in values.items())
    document = Document("mesh.toml", locate(text))
    top = Table(document, (), values)
    read_mesh(top, "shop")
    read_services(top)
    read_intentions(top, "mesh.toml")
    for table in top.tables("apps"):
        read_app(table, None, lambda _: {}, ThisMachine())
    for finding in document.findings:
        assert 1 <= finding.line <= len(values)
        assert finding.column >= 1
        assert finding.message.isprintable()


def test_a_folders_name_is_made_a_meshs_name() -> None:
    assert mesh_name("My Shop_2") == "my-shop-2"
    assert mesh_name("") == mesh_name("...") == mesh_name("\u65e5\u672c") == "mesh"
    assert mesh_name("x" * 200) == "x" * 63


def test_every_pair_has_an_id_of_its_own() -> None:
    assert intention_id("a", "b") == intention_id("a", "b")
    assert len({intention_id("a", "b"), intention_id("b", "a"), intention_id("*", "b")}) == 3
