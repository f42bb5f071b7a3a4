"""One intention decides: the one of highest precedence (Consul's match order)."""

import itertools
from dataclasses import dataclass, field
from random import Random
from timeit import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.intentions import (
    WILDCARD,
    Action,
    HeaderMatch,
    Intention,
    Permission,
    Protocol,
    Rules,
    decide,
    layered,
    ordered,
    precedence,
)

# The pairs that match web => db, in evaluation order, with their precedence.
MATCHING = {("web", "db"): 9, (WILDCARD, "db"): 8, ("web", WILDCARD): 6, (WILDCARD, WILDCARD): 5}
OTHERS = [("api", "db"), ("web", "cache"), ("db", "web"), ("api", WILDCARD), (WILDCARD, "web")]
ACTIONS: tuple[Action, ...] = ("allow", "deny")


def intention(pair: tuple[str, str], action: Action, where: str = "") -> Intention:
    return Intention(source=pair[0], destination=pair[1], action=action, where=where)


@pytest.mark.parametrize(("pair", "expected"), list(MATCHING.items()))
def test_precedence_is_consuls(pair: tuple[str, str], expected: int) -> None:
    assert precedence(intention(pair, "allow")) == expected


CHOICES: tuple[Action | None, ...] = (None, "allow", "deny")


@pytest.mark.parametrize("default", ACTIONS)
@pytest.mark.parametrize("actions", list(itertools.product(CHOICES, repeat=4)))
def test_the_most_exact_intention_decides_in_every_combination(
    actions: tuple[Action | None, ...], default: Action
) -> None:
    present = [
        intention(pair, action)
        for pair, action in zip(MATCHING, actions, strict=True)
        if action is not None
    ]
    foreign = [intention(pair, "deny" if default == "allow" else "allow") for pair in OTHERS]
    for order in itertools.permutations(present):
        decision = decide([*foreign, *order], "web", "db", default)
        assert decision.intention == (present[0] if present else None)
        assert decision.allowed == ((present[0].action if present else default) == "allow")


def test_an_exact_destination_outranks_an_exact_source() -> None:
    both = [intention(("web", "*"), "allow"), intention(("*", "db"), "deny")]
    assert not decide(both, "web", "db", "allow").allowed


def test_without_a_match_the_default_decides_and_says_so() -> None:
    decision = decide([], "web", "db", "deny")
    assert (decision.allowed, decision.intention) == (False, None)
    assert decision.reason == "no intention matches web => db; the default is deny"


def test_the_reason_names_the_intention_and_its_place() -> None:
    decision = decide([intention(("*", "db"), "deny", "mesh.toml:12")], "web", "db", "allow")
    assert decision.reason == "intention * => db (deny), mesh.toml:12"


def test_names_are_compared_literally() -> None:
    allowed = [intention(("web.v1", "db"), "allow")]
    assert not decide(allowed, "webxv1", "db", "deny").allowed
    assert not decide(allowed, "Web.v1", "db", "deny").allowed
    assert not decide([intention(("we*", "db"), "allow")], "web", "db", "deny").allowed


def test_evaluation_order_breaks_ties_by_name() -> None:
    pairs = [("b", "*"), ("*", "*"), ("a", "z"), ("a", "*"), ("*", "y"), ("a", "b")]
    in_order = [i.pair for i in ordered(intention(pair, "allow") for pair in pairs)]
    assert in_order == [("a", "b"), ("a", "z"), ("*", "y"), ("a", "*"), ("b", "*"), ("*", "*")]


def test_a_runtime_intention_hides_the_files_of_the_same_pair_only() -> None:
    base = [intention(("web", "db"), "deny", "mesh.toml:3"), intention(("*", "db"), "allow")]
    over = [intention(("web", "db"), "allow", "runtime")]
    assert layered(base, over) == [over[0], base[1]]
    assert layered(base, []) == base


NAMES = st.sampled_from(["web", "db", "api"])
PATTERNS = st.sampled_from(["web", "db", "api", WILDCARD])
TABLES = st.dictionaries(st.tuples(PATTERNS, PATTERNS), st.sampled_from(ACTIONS))


@given(TABLES, st.randoms(use_true_random=False), NAMES, NAMES, st.sampled_from(ACTIONS))
def test_decides_as_four_look_ups_in_order_would(
    table: dict[tuple[str, str], Action],
    shuffle: Random,
    source: str,
    destination: str,
    default: Action,
) -> None:
    intentions = [intention(pair, action) for pair, action in table.items()]
    shuffle.shuffle(intentions)
    expected = default
    for pair in (
        (WILDCARD, WILDCARD),
        (source, WILDCARD),
        (WILDCARD, destination),
        (source, destination),
    ):
        expected = table.get(pair, expected)
    assert decide(intentions, source, destination, default).allowed == (expected == "allow")


@given(TABLES, TABLES, NAMES, NAMES)
def test_layers_decide_as_one_table_with_the_upper_written_over_the_lower(
    base: dict[tuple[str, str], Action],
    over: dict[tuple[str, str], Action],
    source: str,
    destination: str,
) -> None:
    lower = [intention(pair, action) for pair, action in base.items()]
    upper = [intention(pair, action) for pair, action in over.items()]
    merged = [intention(pair, action) for pair, action in (base | over).items()]
    left = decide(layered(lower, upper), source, destination, "deny")
    assert left == decide(ordered(merged), source, destination, "deny")


# Permissions.


@dataclass
class Ask:
    """A request, with defaults."""

    method: str = "GET"
    path: str = "/"
    authority: str = "db"
    fields: list[tuple[str, str]] = field(default_factory=list)


GET = Permission(action="allow", methods=("GET",))
NO_ADMIN = Permission(action="deny", path_prefix="/admin")


def permitting(
    *permissions: Permission,
    pair: tuple[str, str] = ("web", "db"),
    where: str = "",
    dry_run: bool = False,
) -> Intention:
    return Intention(
        source=pair[0],
        destination=pair[1],
        action="deny",
        permissions=permissions,
        where=where,
        dry_run=dry_run,
    )


def allowed(
    intentions: list[Intention],
    request: Ask | None,
    default: Action = "deny",
    protocol: Protocol = "http",
    source: str = "web",
) -> bool:
    return decide(intentions, source, "db", default, request, protocol=protocol).allowed


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (intention(("web", "db"), "allow"), "web => db (allow)"),
        (permitting(GET), "web => db (1 permission)"),
        (permitting(GET, NO_ADMIN), "web => db (2 permissions)"),
        (permitting(GET, dry_run=True), "web => db (1 permission, dry run)"),
        (
            Intention(source="*", destination="db", action="deny", dry_run=True),
            "* => db (deny, dry run)",
        ),
    ],
)
def test_an_intention_says_what_it_does(made: Intention, expected: str) -> None:
    assert str(made) == expected


@pytest.mark.parametrize("default", ACTIONS)
@pytest.mark.parametrize("protocol", ["http", "http2", "grpc"])
@pytest.mark.parametrize(
    ("permissions", "request_", "expected"),
    [
        ((GET,), Ask("GET"), "allow"),
        ((GET,), Ask("POST"), "default"),
        ((NO_ADMIN, GET), Ask("GET", "/admin"), "deny"),
        ((NO_ADMIN, GET), Ask("GET", "/adminx"), "deny"),
        ((NO_ADMIN, GET), Ask("GET", "/"), "allow"),
        ((NO_ADMIN, GET), Ask("POST", "/"), "default"),
        ((GET, NO_ADMIN), Ask("GET", "/admin"), "allow"),  # the first that matches is terminal
        ((GET, NO_ADMIN), Ask("POST", "/admin"), "deny"),
        ((NO_ADMIN,), Ask("GET", "/"), "default"),
        ((NO_ADMIN,), None, "deny"),
        ((GET,), None, "deny"),
    ],
)
def test_permissions_decide_in_order_and_the_default_about_the_rest(
    permissions: tuple[Permission, ...],
    request_: Ask | None,
    expected: str,
    protocol: Protocol,
    default: Action,
) -> None:
    action = default if expected == "default" else expected
    found = allowed([permitting(*permissions)], request_, default, protocol)
    assert found == (action == "allow")


V2 = (
    Permission(action="deny", path_exact="/v2/admin"),
    Permission(action="allow", path_prefix="/v2/"),
    Permission(action="allow", path_exact="/healthz", methods=("GET",)),
)


@pytest.mark.parametrize("default", ACTIONS)
@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v2/admin", "deny"),
        ("POST", "/v2/admin", "deny"),
        ("GET", "/v2/admin/users", "allow"),
        ("DELETE", "/v2/x", "allow"),
        ("GET", "/v2", "default"),
        ("GET", "/healthz", "allow"),
        ("POST", "/healthz", "default"),
        ("GET", "/v1/x", "default"),
    ],
)
def test_the_documented_reading_of_three_permissions(
    method: str, path: str, expected: str, default: Action
) -> None:
    """Consul docs: ((/v2/*) and not /v2/admin), or ((GET /healthz) and not /v2/admin)."""
    action = default if expected == "default" else expected
    assert allowed([permitting(*V2)], Ask(method, path), default) == (action == "allow")


@pytest.mark.parametrize("default", ACTIONS)
def test_default_deny_allow_all_and_path_deny(default: Action) -> None:
    """Consul's case of that name: what web's intention leaves open is not for `*` to decide."""
    intentions = [
        permitting(Permission(action="deny", path_prefix="/")),
        intention(("*", "db"), "allow"),
    ]
    assert not allowed(intentions, Ask(), default)
    assert allowed(intentions, Ask(), default, source="api")
    only_admin = [permitting(NO_ADMIN), intentions[1]]
    assert allowed(only_admin, Ask(), default) == (default == "allow")
    assert not allowed(only_admin, Ask(path="/admin"), default)


@pytest.mark.parametrize("default", ACTIONS)
@pytest.mark.parametrize("kinds", list(itertools.product((None, "allow", "deny", "GET"), repeat=4)))
def test_the_most_exact_intention_decides_about_requests_in_every_combination(
    kinds: tuple[str | None, ...], default: Action
) -> None:
    present = []
    for pair, kind in zip(MATCHING, kinds, strict=True):
        if kind in ACTIONS:
            present.append(intention(pair, kind))
        elif kind is not None:
            present.append(permitting(GET, pair=pair))
    rules = Rules(present[::-1], "db", default, "http")
    for method in ("GET", "POST"):
        decision = rules.decide("web", Ask(method))
        assert decision.intention == (present[0] if present else None)
        first = next((kind for kind in kinds if kind is not None), default)
        expected = first if first != "GET" else ("allow" if method == "GET" else default)
        assert decision.allowed == (expected == "allow")


@pytest.mark.parametrize("default", ACTIONS)
@pytest.mark.parametrize("request_", [None, Ask()])
def test_permissions_of_a_tcp_service_deny(request_: Ask | None, default: Action) -> None:
    decision = decide([permitting(GET, where="mesh.toml:12")], "web", "db", default, request_)
    assert not decision.allowed
    assert decision.reason == (
        "intention web => db (1 permission), mesh.toml:12: permissions are about HTTP requests, "
        "and db is a tcp service: denied"
    )


def test_an_intention_without_permissions_is_about_every_request() -> None:
    for action in ACTIONS:
        for request in (None, Ask(), Ask("POST", "/admin")):
            assert allowed([intention(("web", "db"), action)], request) == (action == "allow")


@pytest.mark.parametrize(
    ("request_", "reason", "number"),
    [
        (Ask("GET", "/admin"), "permission 1 denies", 1),
        (Ask("GET", "/"), "permission 2 allows", 2),
        (Ask("POST", "/"), "no permission matches; the default is deny", None),
        (
            None,
            "permissions are about HTTP requests, and no request was named: denied",
            None,
        ),
    ],
)
def test_the_reason_names_the_permission(
    request_: Ask | None, reason: str, number: int | None
) -> None:
    made = permitting(NO_ADMIN, GET, where="mesh.toml:12")
    decision = decide([made], "web", "db", "deny", request_, protocol="http")
    assert decision.reason == f"intention web => db (2 permissions), mesh.toml:12: {reason}"
    assert decision.permission == number
    assert not decision.dry_run


@pytest.mark.parametrize("default", ACTIONS)
def test_a_dry_run_lets_through_and_says_what_would_be_denied(default: Action) -> None:
    denial = Intention(source="web", destination="db", action="deny", dry_run=True, where="here")
    decision = decide([denial], "web", "db", default)
    assert (decision.allowed, decision.dry_run) == (True, True)
    assert decision.reason == "intention web => db (deny, dry run), here"

    rules = Rules([permitting(NO_ADMIN, GET, dry_run=True)], "db", default, "http")
    for request, would_be in (
        (Ask("GET", "/admin"), "deny"),
        (Ask("GET", "/"), "allow"),
        (Ask("POST", "/"), default),
        (None, "deny"),
    ):
        decision = rules.decide("web", request)
        assert decision.allowed
        assert decision.dry_run == (would_be == "deny")


def test_nothing_that_a_caller_chose_is_in_a_reason() -> None:
    match = HeaderMatch(name="x-role", exact="admin")
    denial = permitting(Permission(action="deny", headers=(match,)), GET)
    rules = Rules([denial], "db", "deny", "http")
    for method in ("GET", "BREW"):
        for value in ("admin", "EVIL"):
            request = Ask(method, "/EVIL", "EVIL", [("x-role", value), ("x-EVIL", "x")])
            reason = rules.decide("web", request).reason
            assert "EVIL" not in reason
            assert "BREW" not in reason


PERMISSIONS = st.lists(
    st.builds(
        Permission,
        action=st.sampled_from(ACTIONS),
        methods=st.sampled_from([("GET",), ("GET", "POST")]),
        path_prefix=st.sampled_from(["", "/", "/a"]),
        headers=st.sampled_from([(), (HeaderMatch(name="x", exact="1"),)]),
    ),
    max_size=3,
)
INTENTIONS = st.lists(
    st.builds(
        lambda source, destination, action, permissions, dry_run: Intention(
            source=source,
            destination=destination,
            action="deny" if permissions else action,
            permissions=tuple(permissions),
            dry_run=dry_run,
        ),
        PATTERNS,
        PATTERNS,
        st.sampled_from(ACTIONS),
        PERMISSIONS,
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda made: made.pair,
)
REQUESTS = st.builds(
    Ask,
    method=st.sampled_from(["GET", "POST", "PUT"]),
    path=st.sampled_from(["/", "/a", "/b"]),
    fields=st.lists(st.tuples(st.just("X"), st.sampled_from(["0", "1"])), max_size=2),
)
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "http", "grpc")


def specified(
    intentions: list[Intention],
    source: str,
    destination: str,
    default: Action,
    request: Ask,
    protocol: Protocol,
) -> tuple[Action, Intention | None, int | None]:
    """What the specification says, word for word."""
    matching = [
        i
        for i in ordered(intentions)
        if i.source in (source, WILDCARD) and i.destination in (destination, WILDCARD)
    ]
    if not matching:
        return default, None, None
    deciding = matching[0]
    if not deciding.permissions:
        return deciding.action, deciding, None
    if protocol == "tcp":
        return "deny", deciding, None
    for number, permission in enumerate(deciding.permissions, start=1):
        if (
            request.method in permission.methods
            and request.path.startswith(permission.path_prefix)
            and (not permission.headers or ("X", "1") in request.fields)
        ):
            return permission.action, deciding, number
    return default, deciding, None


@given(
    INTENTIONS,
    st.lists(st.tuples(NAMES, REQUESTS), max_size=4),
    NAMES,
    st.sampled_from(ACTIONS),
    st.sampled_from(PROTOCOLS),
)
def test_rules_decide_as_the_specification_and_as_each_decision_for_itself(
    intentions: list[Intention],
    calls: list[tuple[str, Ask]],
    destination: str,
    default: Action,
    protocol: Protocol,
) -> None:
    rules = Rules(intentions, destination, default, protocol)
    for source, request in calls:
        decision = rules.decide(source, request)
        alone = decide(intentions, source, destination, default, request, protocol=protocol)
        assert decision == alone
        action, deciding, number = specified(
            intentions, source, destination, default, request, protocol
        )
        assert (decision.intention, decision.permission) == (deciding, number)
        would_deny = action == "deny"
        dry_run = would_deny and deciding is not None and deciding.dry_run
        assert (decision.allowed, decision.dry_run) == (not would_deny or dry_run, dry_run)


def test_a_decision_is_as_fast_among_ten_thousand_intentions() -> None:
    others = [intention((f"s{number}", "db"), "allow") for number in range(10_000)]
    request = Ask(fields=[("accept", "*/*")] * 20)
    for made in (intention(("web", "db"), "allow"), permitting(GET)):
        rules = Rules([*others, made], "db", "deny", "http")
        assert rules.decide("web", request) is rules.decide("web", request)
        # A microsecond on an idle machine; what would look through all takes a millisecond.
        fastest_s = min(timeit(lambda: rules.decide("web", request), number=100) for _ in range(20))  # noqa: B023
        assert fastest_s / 100 < 20e-6


def test_the_headers_that_are_looked_at_are_those_of_the_intention_that_decides() -> None:
    def about(source: str, name: str, *, dry_run: bool = False) -> Intention:
        header = HeaderMatch(name=name, present=True)
        permission = Permission(action="deny", headers=(header,))
        return Intention(
            source=source,
            destination="api",
            action="deny",
            permissions=(permission,),
            dry_run=dry_run,
        )

    trial = about("trial", "x-role", dry_run=True)
    rules = Rules([about("web", "X-Role"), about("*", "x-tenant"), trial], "api", "deny", "http")
    for name in ("x-role", "X-ROLE", "x.role", "x_role"):
        assert rules.looks_at("web", name)
        assert not rules.looks_at("other", name)
        assert not rules.looks_at("trial", name)
    assert rules.looks_at("other", "x-tenant")
    assert not rules.looks_at("web", "x-tenant")
    assert not Rules([], "api", "deny", "http").looks_at("web", "x-role")
