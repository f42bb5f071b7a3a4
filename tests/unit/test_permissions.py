"""Which requests a permission means; doubling, joining or leaving out a header opens none."""

from dataclasses import dataclass, field
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.http.heads import Request
from meshrun.proxy.permissions import (
    MOST_PARTS,
    Action,
    Asked,
    Fields,
    HeaderMatch,
    Matcher,
    Permission,
)
from meshrun.proxy.regex import RegexError, full_match, search

Values = tuple[str, ...]


@dataclass
class Ask:
    """A request, with defaults."""

    method: str = "GET"
    path: str = "/"
    authority: str = "api"
    fields: list[tuple[str, str]] = field(default_factory=list)


def matches(permission: Permission, request: Asked) -> bool:
    return Matcher(permission).matches(request, Fields(request))


def with_header(values: Values, name: str = "X-Role") -> Ask:
    return Ask(fields=[("Accept", "*/*"), *((name, value) for value in values)])


def test_deny_of_every_path_is_about_requests_without_one_too() -> None:
    request = Request("OPTIONS", "*", "", "server")
    assert matches(Permission(action="deny", path_prefix="/"), request)
    assert matches(Permission(action="deny", path_prefix="/", methods=("OPTIONS",)), request)
    assert not matches(Permission(action="deny", path_prefix="/", methods=("GET",)), request)
    assert not matches(Permission(action="deny", path_prefix="/a"), request)
    assert not matches(Permission(action="allow", path_prefix="/"), request)


def test_the_head_of_a_request_can_be_asked_about() -> None:
    request = Request("GET", "/a", "?b", "api")
    assert matches(Permission(action="allow", methods=("GET",)), request)


@pytest.mark.parametrize(
    ("permission", "method", "path", "expected"),
    [
        ({"methods": ("GET", "HEAD")}, "HEAD", "/", True),
        ({"methods": ("GET", "HEAD")}, "POST", "/", False),
        ({"methods": ("GET",)}, "GETS", "/", False),
        ({"methods": ("GET",)}, "get", "/", False),
        ({"path_exact": "/v1"}, "GET", "/v1", True),
        ({"path_exact": "/v1"}, "GET", "/v1/", False),
        ({"path_exact": "/v1"}, "GET", "/V1", False),
        ({"path_prefix": "/admin"}, "GET", "/admin", True),
        ({"path_prefix": "/admin"}, "GET", "/administrator", True),
        ({"path_prefix": "/admin/"}, "GET", "/admin", False),
        ({"path_prefix": "/admin"}, "GET", "/x/admin", False),
        ({"path_regex": "/v[123]"}, "GET", "/v2", True),
        ({"path_regex": "/v[123]"}, "GET", "/v1/x", False),
        ({"path_regex": "/v[123]"}, "GET", "/x/v1", False),
        ({"path_regex": "/a|/b"}, "GET", "/b", True),
        ({"path_regex": "/a|/b"}, "GET", "/bc", False),
        ({"methods": ("GET",), "path_prefix": "/v1"}, "GET", "/v1/x", True),
        ({"methods": ("GET",), "path_prefix": "/v1"}, "POST", "/v1/x", False),
        ({"methods": ("GET",), "path_prefix": "/v1"}, "GET", "/v2", False),
    ],
)
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_methods_and_paths(
    action: Action, permission: dict[str, object], method: str, path: str, expected: bool
) -> None:
    made = Permission(action=action, **permission)  # type: ignore[arg-type]
    assert matches(made, Ask(method=method, path=path)) is expected


PRESENT = HeaderMatch(name="x-role", present=True)
EXACT = HeaderMatch(name="x-role", exact="admin")
PREFIX = HeaderMatch(name="x-role", prefix="adm")
SUFFIX = HeaderMatch(name="x-role", suffix="min")
CONTAINS = HeaderMatch(name="x-role", contains="dmi")
REGEX = HeaderMatch(name="x-role", regex="ad.in")


def inverted(match: HeaderMatch) -> HeaderMatch:
    made = {name: getattr(match, name) for name in match.__struct_fields__} | {"invert": True}
    return HeaderMatch(**made)


@pytest.mark.parametrize(
    ("match", "values", "expected"),
    [
        (PRESENT, (), False),
        (PRESENT, ("",), True),
        (PRESENT, ("x", "y"), True),
        (EXACT, (), False),
        (EXACT, ("",), False),
        (EXACT, ("admin",), True),
        (EXACT, ("Admin",), False),
        (EXACT, ("administrator",), False),
        (EXACT, ("user", "admin"), True),  # repeated: the last
        (EXACT, ("admin", "user"), True),  # or the first
        (EXACT, ("user, admin",), True),  # joined in one line
        (EXACT, ("user,\tadmin ",), True),
        (EXACT, (" admin\t",), True),
        (EXACT, ("user,admin,guest",), True),
        (EXACT, ("user admin",), False),
        (PREFIX, ("admin",), True),
        (PREFIX, ("user,admin",), True),
        (PREFIX, ("xadmin",), False),
        (SUFFIX, ("admin",), True),
        (SUFFIX, ("admin, user",), True),
        (SUFFIX, ("admins",), False),
        (CONTAINS, ("my-admin-role",), True),
        (CONTAINS, ("user", "my-admin-role"), True),
        (CONTAINS, ("user",), False),
        (REGEX, ("admin",), True),
        (REGEX, ("ad\xffin",), True),  # `.` is any byte: not UTF-8 is no way past a deny
        (REGEX, ("xadmin",), False),
        (REGEX, ("admin2",), False),
        (REGEX, ("user,admin",), True),
        (REGEX, ("user", "admin"), True),
    ],
)
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_a_header_matches_on_each_value_each_part_and_the_whole(
    action: Action, match: HeaderMatch, values: Values, expected: bool
) -> None:
    permission = Permission(action=action, headers=(match,))
    assert matches(permission, with_header(values)) is expected
    assert matches(permission, with_header(values, "x-ROLE")) is expected
    assert not matches(permission, with_header((), "x-roles"))


def test_a_header_matches_on_what_its_lines_are_together() -> None:
    both = HeaderMatch(name="x-role", exact="user, admin")
    permission = Permission(action="deny", headers=(both,))
    assert matches(permission, with_header(("user", "admin")))
    assert matches(permission, with_header(("user, admin",)))
    assert not matches(permission, with_header(("admin", "user")))


@pytest.mark.parametrize("values", [("a=1", "b=2"), ("a=1; b=2",)])
def test_a_cookie_in_pieces_is_one(values: Values) -> None:
    # To HTTP/2 these are the same (RFC 9113 8.2.3), and so they are to apps.
    whole = HeaderMatch(name="cookie", exact="a=1; b=2")
    for action in ("allow", "deny"):
        permission = Permission(action=action, headers=(whole,))
        assert matches(permission, with_header(values, "Cookie"))
        assert not matches(permission, with_header(values[::-1], "X-Cookie"))
    listed = HeaderMatch(name="cookie", exact="a=1, b=2")
    assert not matches(Permission(action="deny", headers=(listed,)), with_header(values, "Cookie"))


# Blanks that are none to HTTP, as the bytes that a sidecar sees.
BLANKS = [
    "\xa0",
    "\x85",
    "\x85\xa0",
    *(c.encode().decode("latin-1") for c in "\xa0\x85\u2003\u3000"),
]


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("listed", ["{}", "user, {}", "{},user"])
def test_a_blank_that_only_apps_take_for_one_gets_past_no_rule(blank: str, listed: str) -> None:
    for value in (f"admin{blank}", f"{blank}admin", f"{blank}admin{blank}", f"{blank}admin\xa0"):
        request = with_header((listed.format(value),))
        for match in (EXACT, REGEX):
            assert matches(Permission(action="deny", headers=(match,)), request)
            assert not matches(Permission(action="allow", headers=(match,)), request)
            assert matches(Permission(action="deny", headers=(inverted(match),)), request)
            assert not matches(Permission(action="allow", headers=(inverted(match),)), request)


def test_the_last_byte_of_a_letter_is_no_blank() -> None:
    for text in ("voilà", "Å", "…"):  # C3 A0, C3 85 and E2 80 A6 in UTF-8
        match = HeaderMatch(name="x-role", exact=text)
        request = with_header((text.encode().decode("latin-1"),))
        for action in ("allow", "deny"):
            assert matches(Permission(action=action, headers=(match,)), request)
            assert not matches(Permission(action=action, headers=(inverted(match),)), request)


@pytest.mark.parametrize("name", ["X.Role", "x_role", "xrole", "X--Role", "-x-role-"])
def test_a_name_that_only_some_apps_take_for_the_header_gets_past_no_rule(name: str) -> None:
    alike = with_header(("admin",), name)
    for match in (EXACT, PRESENT):
        assert matches(Permission(action="deny", headers=(match,)), alike)
        assert not matches(Permission(action="allow", headers=(match,)), alike)
        assert matches(Permission(action="deny", headers=(inverted(match),)), alike)
        assert not matches(Permission(action="allow", headers=(inverted(match),)), alike)
    # What is beside the header counts against the caller only.
    beside = Ask(fields=[("X-Role", "admin"), (name, "user")])
    assert matches(Permission(action="deny", headers=(inverted(EXACT),)), beside)
    assert matches(Permission(action="allow", headers=(EXACT,)), beside)
    hidden = Ask(fields=[("X-Role", "user"), (name, "admin")])
    assert matches(Permission(action="deny", headers=(EXACT,)), hidden)
    assert not matches(Permission(action="allow", headers=(EXACT,)), hidden)


@pytest.mark.parametrize(
    ("match", "values", "denies", "allows"),
    [
        # Absent: a deny of all who are not `admin` means them too, an allow of them does not.
        (EXACT, (), True, False),
        (REGEX, (), True, False),
        (CONTAINS, (), True, False),
        (PRESENT, (), True, True),  # absence is what is asked about
        (PRESENT, ("x",), False, False),
        (PRESENT, ("",), False, False),
        (EXACT, ("",), True, True),
        (EXACT, ("admin",), False, False),
        (EXACT, ("user",), True, True),
        # Both, in whatever way: an app may take either.
        (EXACT, ("admin", "user"), True, False),
        (EXACT, ("user", "admin"), True, False),
        (EXACT, ("admin,user",), True, False),
        (EXACT, ("user", "guest"), True, True),
        (PREFIX, ("admin, user",), True, False),
        (PREFIX, ("admin", "administrator"), False, False),
        (CONTAINS, ("admin", "user"), True, False),
        (REGEX, ("admin", "\xff"), True, False),
    ],
)
def test_an_inverted_matcher_is_read_against_the_caller(
    match: HeaderMatch, values: Values, denies: bool, allows: bool
) -> None:
    request = with_header(values)
    match = inverted(match)
    assert matches(Permission(action="deny", headers=(match,)), request) is denies
    assert matches(Permission(action="allow", headers=(match,)), request) is allows


@pytest.mark.parametrize("kind", ["exact", "prefix", "suffix", "contains"])
def test_case_is_ignored_where_that_is_said_and_of_ascii_only(kind: str) -> None:
    def found(text: str, value: str, *, ignore_case: bool) -> bool:
        match = HeaderMatch(name="X-Role", ignore_case=ignore_case, **{kind: text})  # type: ignore[arg-type]
        return matches(Permission(action="allow", headers=(match,)), with_header((value,)))

    assert found("Admin", "aDMIN", ignore_case=True)
    assert not found("Admin", "aDMIN", ignore_case=False)
    # Texts of rules are compared by their bytes in UTF-8.
    assert found("ZOÉ", "zoÉ".encode().decode("latin-1"), ignore_case=True)
    assert not found("zoé", "zoÉ".encode().decode("latin-1"), ignore_case=True)
    assert not found("zoé", "zoé", ignore_case=True)  # the byte E9 is no UTF-8


@pytest.mark.parametrize("name", ["host", "Host", ":authority"])
def test_a_host_is_matched_as_sent_and_without_case_dot_and_port(name: str) -> None:
    for written, wanted in (
        ("API.local:80", "API.local:80"),
        ("API.local.:80", "api.local:80"),
        ("API.local.:80", "api.local"),
        ("api.local", "api.local:80"),
        ("API.local.:8080", "api.local:8080"),
        ("API.local.:8080", "api.local"),
        ("api.LOCAL.", "api.local"),
        ("[::1]:8080", "[::1]"),
        ("[::1]", "[::1]"),
    ):
        match = HeaderMatch(name=name, exact=wanted)
        for action in ("allow", "deny"):
            assert matches(Permission(action=action, headers=(match,)), Ask(authority=written))
            wrong = Permission(action=action, headers=(inverted(match),))
            assert not matches(wrong, Ask(authority=written))
            assert matches(wrong, Ask(authority="other"))
    absent = Ask(authority="")
    match = inverted(HeaderMatch(name=name, exact="api"))
    assert matches(Permission(action="deny", headers=(match,)), absent)
    assert not matches(Permission(action="allow", headers=(match,)), absent)


def test_all_conditions_on_headers_must_be_met() -> None:
    tenant = HeaderMatch(name="x-tenant", present=True)
    permission = Permission(action="allow", headers=(EXACT, tenant))
    assert not matches(permission, with_header(("admin",)))
    both = Ask(fields=[("x-role", "admin"), ("x-tenant", "1")])
    assert matches(permission, both)


@pytest.mark.parametrize("match", [EXACT, inverted(EXACT), REGEX, inverted(REGEX)])
def test_a_header_of_too_many_parts_is_denied_and_never_allowed(match: HeaderMatch) -> None:
    many = with_header(("admin," * MOST_PARTS,))
    assert matches(Permission(action="deny", headers=(match,)), many)
    assert not matches(Permission(action="allow", headers=(match,)), many)
    present = Permission(action="allow", headers=(PRESENT,))
    assert matches(present, many)
    assert not matches(Permission(action="deny", headers=(inverted(PRESENT),)), many)


@pytest.mark.parametrize(
    "unclear",
    [
        {},
        {"path_regex": "("},
        {"headers": (HeaderMatch(name="x"),)},
        {"headers": (HeaderMatch(name="x", exact="a", prefix="b"),)},
        {"headers": (HeaderMatch(name="x", regex="[a"),)},
        {"methods": ("GET",), "path_regex": r"(?=a)"},
    ],
)
def test_a_permission_that_cannot_be_understood_counts_against_the_caller(
    unclear: dict[str, object],
) -> None:
    for method in ("GET", "POST"):
        assert matches(Permission(action="deny", **unclear), Ask(method=method))  # type: ignore[arg-type]
        assert not matches(Permission(action="allow", **unclear), Ask(method=method))  # type: ignore[arg-type]


def test_no_text_makes_an_expression_slow() -> None:
    evil = full_match(r"(a*)*b")
    begun = perf_counter()
    assert not evil("a" * 60_000)
    assert perf_counter() - begun < 1.0


@pytest.mark.parametrize(
    ("expression", "said"),
    [("(", "missing )"), (r"(?=a)", "invalid perl operator"), ("a{2000}", "invalid repetition")],
)
def test_what_is_no_expression_is_refused_in_re2s_words(expression: str, said: str) -> None:
    with pytest.raises(RegexError, match=said.replace(")", r"\)")):
        full_match(expression)


def test_an_expression_that_takes_too_much_memory_is_refused() -> None:
    with pytest.raises(RegexError, match="too large"):
        full_match(r"((\w{100}){5}){2}" * 20)


def test_a_search_finds_bytes_anywhere_whatever_stands_around_them() -> None:
    found = search("port é$")
    assert found(b"\xff\xfe on port \xc3\xa9")
    assert not found(b"port \xc3\xa9.")
    assert search("a.b")(b"xa\x00by")


@given(st.text(st.characters(max_codepoint=255), max_size=20))
def test_any_byte_is_matched(text: str) -> None:
    assert full_match(".*")(text)


NAMES = st.sampled_from(["x-role", "X-Role", "X.Role", "other"])
TEXTS = st.text("ab,\xff\xa0 ", max_size=6)
MATCHES = st.builds(
    lambda kind, text, **flags: HeaderMatch(name="x-role", **{kind: text}, **flags),
    kind=st.sampled_from(["exact", "prefix", "suffix", "contains"]),
    text=st.text("abé", min_size=1, max_size=2),
    ignore_case=st.booleans(),
)
FIELDS = st.lists(st.tuples(NAMES, TEXTS), max_size=4)


@given(MATCHES, FIELDS)
def test_inverting_never_makes_a_deny_and_its_opposite_both_pass(
    match: HeaderMatch, fields: list[tuple[str, str]]
) -> None:
    request = Ask(fields=fields)

    def hit(action: Action, wanted: HeaderMatch) -> bool:
        return matches(Permission(action=action, headers=(wanted,)), request)

    # Whoever is denied neither for having it nor for not having it could be anybody.
    assert hit("deny", match) or hit("deny", inverted(match))
    # Whoever is allowed for both could say anything.
    assert not (hit("allow", match) and hit("allow", inverted(match)))


@given(MATCHES, FIELDS, st.tuples(NAMES, TEXTS), st.integers(0, 4))
def test_adding_a_field_never_gets_past_a_deny(
    match: HeaderMatch, fields: list[tuple[str, str]], more: tuple[str, str], at: int
) -> None:
    for wanted in (match, inverted(match)):
        permission = Permission(action="deny", headers=(wanted,))
        before = Ask(fields=fields)
        after = Ask(fields=[*fields[:at], more, *fields[at:]])
        absent = all(name.lower() != "x-role" for name, _ in fields)
        if matches(permission, before) and not absent:
            assert matches(permission, after)
