"""One dash or two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.cli.arguments import Spelling, with_two_dashes

SPELLING = Spelling(
    flags=frozenset({"--json", "--follow", "-f", "--replace", "--deny", "-d", "--detach"}),
    valued=frozenset({"-n", "--from", "--to", "--description", "--meta"}),
)


@pytest.mark.parametrize(
    ("given_words", "expected"),
    [
        ("-replace a b", "--replace a b"),
        ("a -replace b", "a --replace b"),
        ("-from web -to db", "--from web --to db"),
        ("-from=web", "--from=web"),
        ("--from web -json", "--from web --json"),
        # The values of options are theirs, whatever they look like.
        ("-description -replace -json", "--description -replace --json"),
        ("--description -replace", "--description -replace"),
        ("-n -json -json", "-n -json --json"),
        ("-fn -json", "-fn -json"),
        # Short options and their bundles.
        ("-f", "-f"),
        ("-fd", "-fd"),
        ("-fn5 -json", "-fn5 --json"),
        ("-n5", "-n5"),
        # An exact long name goes before a bundle.
        ("-detach", "--detach"),
        # Numbers and single dashes are arguments.
        ("-5 -1.5 -", "-5 -1.5 -"),
        # After -- nothing is rewritten.
        ("-json -- -json", "--json -- -json"),
        # A slip of the pen is one in a long name, so that the right one is suggested.
        ("-repalce", "--repalce"),
        ("-dteach", "--dteach"),
        ("-x", "-x"),
    ],
)
def test_long_options_get_two_dashes(given_words: str, expected: str) -> None:
    assert with_two_dashes(given_words.split(), SPELLING) == expected.split()


def test_what_follows_a_command_is_left_to_it() -> None:
    spelling = Spelling(frozenset({"--version"}), frozenset({"--config"}), interspersed=False)
    words = ["-config", "ps", "-version", "ps", "-version", "-json"]
    assert with_two_dashes(words, spelling) == [
        "--config",
        "ps",
        "--version",
        "ps",
        "-version",
        "-json",
    ]


WORDS = st.one_of(
    st.sampled_from(["-json", "--json", "-from", "-n", "-fn5", "--", "-", "-5", "a", "-x=1"]),
    st.text("-abfn=5", max_size=6),
)


@given(st.lists(WORDS))
def test_rewriting_adds_nothing_but_dashes_and_is_stable(words: list[str]) -> None:
    once = with_two_dashes(words, SPELLING)
    assert len(once) == len(words)
    assert all(new in (old, f"-{old}") for old, new in zip(words, once, strict=True))
    assert with_two_dashes(once, SPELLING) == once


@given(st.lists(WORDS), st.lists(WORDS))
def test_nothing_after_two_dashes_changes(before: list[str], after: list[str]) -> None:
    # A `-n` at the end of `before` would take the `--` for its value.
    words = [*before, "a", "--", *after]
    assert with_two_dashes(words, SPELLING)[-len(after) - 1 :] == ["--", *after]
