"""When an exchange is over, whoever ends it and in whatever order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.http.exchange import Failure
from meshrun.proxy.http.heads import Fields, Request, Response
from meshrun.proxy.http.relay import MOST_KEPT_BYTES, Relay
from meshrun.proxy.memory import held


@dataclass
class Side:
    """A downstream and an upstream that note what they are told."""

    said: list[str] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    def respond(self, head: Response) -> None:
        self.said.append(f"head {head.status}")

    def send(self, data: bytes | memoryview) -> None:
        self.said.append("data")
        self.body += data

    def end(self, trailers: Fields) -> None:
        self.said.append("end")

    def abort(self, reason: str) -> None:
        self.said.append("abort")

    def flush(self) -> None:
        pass

    def hold(self) -> None:
        pass

    def resume(self) -> None:
        pass


class Counted(Relay):
    """A relay that notes with what reason it was over."""

    __slots__ = ("ends", "near", "upstream")

    def __init__(self) -> None:
        request = Request(method="GET", path="/", query="", authority="app")
        self.near, self.upstream = Side(), Side()
        super().__init__(request, self.near, grpc=False)
        self.ends: list[str] = []
        self.connect(self.upstream)

    def over(self, reason: str) -> None:
        self.ends.append(reason)

    def go_elsewhere(self) -> Side | None:
        """Send all that has come to another upstream, if it can be sent again."""
        if not self.body_kept:
            return None
        self._take_back()
        self.upstream = Side()
        self.connect(self.upstream)
        return self.upstream


def ends(relay: Counted) -> list[str]:
    """Why it was over, once for each time that it was."""
    return relay.ends


Step = Callable[[Counted], None]
STEPS: dict[str, Step] = {
    "request ends": lambda relay: relay.request_end([]),
    "request is aborted": lambda relay: relay.request_aborted("gone"),
    "200": lambda relay: relay.response_head(Response(status=200)),
    "101": lambda relay: relay.response_head(Response(status=101)),
    "response ends": lambda relay: relay.response_end([]),
    "response fails": lambda relay: relay.response_failed(Failure.BROKEN, "broken"),
    "answer": lambda relay: relay.answer(504, "late"),
    "cut": lambda relay: relay.cut("forbidden"),
}


def after(*names: str) -> Counted:
    relay = Counted()
    for name in names:
        STEPS[name](relay)
    return relay


@pytest.mark.parametrize(
    ("names", "reasons"),
    [
        (("request ends", "200"), []),
        (("request ends", "200", "response ends"), [""]),
        (("200", "response ends"), [""]),  # it did not wait for the request
        (("200", "response ends", "request ends"), [""]),
        (("request ends", "101"), []),
        (("request ends", "101", "response ends"), []),
        (("request ends", "101", "response ends", "request ends"), [""]),
        (("request ends", "101", "request ends"), []),
        (("request ends", "101", "request ends", "response ends"), [""]),
        (("request is aborted",), ["gone"]),
        (("request ends", "200", "cut"), ["forbidden"]),
        (("request ends", "200", "response ends", "cut"), [""]),
        (("request ends", "200", "response fails"), ["broken"]),
        (("request ends", "response fails"), [""]),  # it is answered instead
        (("request ends", "answer"), [""]),
        (("request ends", "200", "answer"), ["late"]),
        (("request ends", "101", "response ends", "cut"), ["forbidden"]),
        (("request ends", "101", "response ends", "answer"), ["late"]),
        (("request ends", "101", "response ends", "request is aborted"), ["gone"]),
        (("request ends", "101", "request ends", "answer"), ["late"]),
    ],
)
def test_an_exchange_is_over_when_both_directions_are(
    names: Sequence[str], reasons: list[str]
) -> None:
    relay = after(*names)
    assert relay.ends == reasons
    assert bool(ends(relay)) is not (relay.request_open or relay.response_open)


def may_happen(relay: Counted, name: str, before: list[str]) -> bool:
    """Whether a side still says that: nothing follows its last event, or that it was broken off."""
    if name in ("answer", "cut"):
        return True
    if name.startswith("request"):
        ended = "request ends" in before and "101" not in before[before.index("request ends") :]
        broken = "request is aborted" in before or "abort" in relay.near.said
        return not (broken or ended or before.count("request ends") > 1)
    last = {"response ends", "response fails"} & set(before)
    begun = {"101", "200"} & set(before)
    said_something = name == "response fails" or bool(begun) is not name.isdigit()
    return not (last or "abort" in relay.upstream.said) and said_something


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=12))
def test_it_is_over_once_and_nothing_follows_what_was_broken_off(names: list[str]) -> None:
    relay = Counted()
    happened: list[str] = []
    for name in names:
        if may_happen(relay, name, happened):
            happened.append(name)
            STEPS[name](relay)
    assert len(relay.ends) == (not relay.request_open and not relay.response_open)
    assert "abort" not in relay.near.said[:-1]
    assert relay.near.said.count("end") <= 1


def test_what_was_upgraded_and_half_ended_is_broken_off_where_nobody_can_answer() -> None:
    relay = after("request ends", "101", "response ends", "answer")
    assert relay.near.said == ["head 101", "end", "abort"]
    assert relay.upstream.said == ["end", "abort"]


def test_trailers_go_to_another_upstream_too() -> None:
    relay = after("request ends")
    relay.connect(other := Side())
    assert other.said == ["end"]


PIECES = st.lists(
    st.one_of(st.integers(0, 9), st.integers(0, MOST_KEPT_BYTES), st.just(MOST_KEPT_BYTES)),
    max_size=6,
)


@given(before=PIECES, between=PIECES, after_it=PIECES)
def test_another_upstream_hears_all_of_a_body_or_none(
    before: list[int], between: list[int], after_it: list[int]
) -> None:
    relay, kept_before, body = Counted(), held.bytes, bytearray()

    def send(sizes: list[int]) -> None:
        for size in sizes:
            piece = bytes([len(body) % 251]) * size
            body.extend(piece)
            relay.request_data(memoryview(piece))

    send(before)
    assert held.bytes - kept_before <= MOST_KEPT_BYTES
    assert relay.body_kept is (sum(before) <= MOST_KEPT_BYTES)
    if relay.go_elsewhere() is not None:
        assert relay.upstream.body == body
        send(between)
        if relay.go_elsewhere() is not None:
            assert relay.upstream.body == body
    send(after_it)
    assert relay.upstream.body == body
    relay.request_end([])
    relay.response_head(Response(status=200))
    assert held.bytes == kept_before
    relay.response_end([])


@pytest.mark.parametrize("name", ["100", "cut", "request is aborted", "answer"])
def test_nothing_of_a_body_is_kept_once_nobody_may_need_it(name: str) -> None:
    before = held.bytes
    relay = after()
    relay.request_data(b"body")
    assert held.bytes == before + 4
    if name == "100":
        relay.response_head(Response(status=100))
        relay.request_data(b"more")
    else:
        STEPS[name](relay)
    assert held.bytes == before


def test_where_sidecars_keep_too_much_already_nothing_more_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held, "take", lambda _size: False)
    relay = after()
    relay.request_data(b"body")
    assert not relay.body_kept
    assert relay.upstream.body == b"body"
