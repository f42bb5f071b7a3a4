"""The right name nearest to a wrong one."""

from meshrun.supervisor.suggest import hint, nearest

KEYS = ["command", "connect_timeout", "port", "protocol"]


def test_the_nearest_name_is_found() -> None:
    assert nearest("comand", KEYS) == "command"
    assert nearest("prot", KEYS) == "port"


def test_case_and_the_kind_of_dash_count_little() -> None:
    assert nearest("Connect-Timeout", KEYS) == "connect_timeout"


def test_a_name_like_none_gets_no_hint() -> None:
    assert nearest("colour", KEYS) is None
    assert hint("colour", KEYS) == ""


def test_a_name_is_not_suggested_for_itself() -> None:
    assert nearest("port", ["port"]) is None


def test_a_long_name_is_not_compared() -> None:
    assert nearest("p" * 1_000_000, ["p" * 60]) is None


def test_a_hint_ends_a_sentence() -> None:
    assert hint("prot", KEYS) == ' (did you mean "port"?)'
