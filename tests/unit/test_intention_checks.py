"""Consul's words for what an intention in its JSON cannot be, and what it is otherwise."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.intentions import Action, HeaderMatch, Intention, Permission
from meshrun.supervisor.configuration.conditions import METHODS
from meshrun.supervisor.intention_checks import UnfitIntentionError, effect
from meshrun.supervisor.intention_json import (
    IntentionRecord,
    PermissionRecord,
    permission_records,
)


def read(text: str) -> list[PermissionRecord]:
    return msgspec.json.decode(text, type=list[PermissionRecord])


def refusal(
    permissions: str, destination: str = "db", action: str | None = None, *, dry_run: bool = False
) -> str:
    with pytest.raises(UnfitIntentionError) as caught:
        effect(destination, action, read(permissions), dry_run=dry_run)
    return str(caught.value)


HTTP = "Sources[0].Permissions[0].HTTP"


@pytest.mark.parametrize(
    ("http", "said"),
    [
        ({}, f"{HTTP} should not be empty"),
        ({"Methods": [], "Header": None}, f"{HTTP} should not be empty"),
        ({"PathExact": "x"}, f"{HTTP}.PathExact doesn't start with '/': \"x\""),
        ({"PathPrefix": "x"}, f"{HTTP}.PathPrefix doesn't start with '/': \"x\""),
        (
            {"PathExact": "/x", "PathRegex": "/x"},
            f"{HTTP} should only contain at most one of PathExact, PathPrefix, or PathRegex",
        ),
        ({"Header": [{"Exact": "x"}]}, f"{HTTP}.Header[0] missing required Name field"),
        (
            {"Header": [{"Name": "x"}]},
            f"{HTTP}.Header[0] should only contain one of Present, Exact, Prefix, Suffix, or Regex",
        ),
        (
            {"Header": [{"Name": "x", "Present": True}, {"Name": "x", "Exact": "a", "Regex": "b"}]},
            f"{HTTP}.Header[1] should only contain one of Present, Exact, Prefix, Suffix, or Regex",
        ),
        (
            {"Header": [{"Name": "x", "Regex": "a", "IgnoreCase": True}]},
            f"{HTTP}.Header[0] should set one of Exact, Prefix, Suffix, or Contains when using "
            "IgnoreCase",
        ),
        ({"Methods": ["GTE"]}, f'{HTTP}.Methods contains an invalid method "GTE"'),
        ({"Methods": ["GET", "get"]}, f'{HTTP}.Methods contains "get" more than once'),
        (
            {"PathPrefix": "//admin"},
            f"{HTTP}.PathPrefix matches no request: paths are compared in their normal form, "
            'which is "/admin", not "//admin"',
        ),
        ({"PathRegex": "("}, f"{HTTP}.PathRegex must be a regular expression of RE2: missing ): ("),
        (
            {"Header": [{"Name": "te", "Present": True}]},
            f'{HTTP}.Header[0].Name must not be "te", which is about the connection only',
        ),
        (
            {"Header": [{"Name": "x", "Present": True}] * 33},
            f"{HTTP}.Header has 33 entries, over 32",
        ),
    ],
)
def test_what_a_permission_cannot_be(http: object, said: str) -> None:
    assert refusal(json.dumps([{"Action": "deny", "HTTP": http}])) == said


def test_what_an_intention_cannot_be() -> None:
    one = '[{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]'
    assert refusal("[]") == "Sources[0].Action must be set to 'allow' or 'deny'"
    assert refusal("[]", action="permit") == "Sources[0].Action must be set to 'allow' or 'deny'"
    assert refusal(one, action="allow") == (
        "Sources[0].Action must be omitted if Permissions are specified"
    )
    assert refusal(one, "*") == (
        "Sources[0].Permissions cannot be specified on intentions with wildcarded destinations"
    )
    many = "[" + ", ".join([one[1:-1]] * 65) + "]"
    assert refusal(many) == "Sources[0].Permissions has 65 entries, over 64"
    assert refusal('[{"HTTP": {"PathPrefix": "/"}}]') == (
        "Sources[0].Permissions[0].Action must be set to 'allow' or 'deny'"
    )
    assert refusal('[{"Action": "deny"}]') == "Sources[0].Permissions[0].HTTP is required"
    assert "DryRun would deny nothing" in refusal("[]", action="allow", dry_run=True)


@pytest.mark.parametrize(
    "text",
    [
        '[{"Action": "deny", "HTTP": {"PathPrefx": "/admin", "Methods": ["GET"]}}]',
        '[{"Action": "deny", "HTTP": {"Header": [{"Name": "x", "Exakt": "a"}]}}]',
        '[{"Action": "deny", "HTTP": {"PathExact": "/"}, "JWT": {"Providers": []}}]',
    ],
)
def test_no_condition_is_overlooked(text: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        read(text)


@pytest.mark.parametrize("action", ["allow", "deny"])
def test_an_action_is_an_effect(action: Action) -> None:
    assert effect("*", action, None) == (action, (), False)
    assert effect("db", action, []) == (action, (), False)
    assert effect("db", "deny", None, dry_run=True) == ("deny", (), True)


PATHS = st.sampled_from([{"path_exact": "/a"}, {"path_prefix": "/"}, {"path_regex": "/a.*"}, {}])
KINDS = ("exact", "prefix", "suffix", "contains", "regex")
HEADERS = st.builds(
    lambda name, kind, invert: msgspec.structs.replace(
        HeaderMatch(name=name, invert=invert), **{kind: "a"}
    ),
    st.sampled_from(["x-role", "host"]),
    st.sampled_from(KINDS),
    st.booleans(),
) | st.builds(HeaderMatch, name=st.just("x-tenant"), present=st.just(True))
PERMISSIONS = st.builds(
    lambda action, methods, path, headers: Permission(
        action=action, methods=tuple(methods), headers=tuple(headers), **path
    ),
    st.sampled_from(["allow", "deny"]),
    st.lists(st.sampled_from(METHODS), unique=True, min_size=1, max_size=3),
    PATHS,
    st.lists(HEADERS, max_size=3),
)


@given(st.lists(PERMISSIONS, min_size=1, max_size=3), st.booleans())
def test_what_is_shown_is_read_as_the_same(permissions: list[Permission], dry_run: bool) -> None:
    shown = msgspec.json.encode(permission_records(permissions)).decode()
    assert effect("db", None, read(shown), dry_run=dry_run) == (
        "deny",
        tuple(permissions),
        dry_run,
    )
    intention = Intention(
        source="web",
        destination="db",
        action="deny",
        permissions=tuple(permissions),
        dry_run=dry_run,
        id="1",
        created_at=1.0,
    )
    record = msgspec.json.encode(IntentionRecord.of(intention))
    assert msgspec.json.decode(record, type=IntentionRecord).intention() == intention
