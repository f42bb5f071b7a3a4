"""HTTP/2 on a connection, said and heard event by event; see `support.wire`."""

from collections.abc import Sequence
from typing import TypeVar

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes
from hpack.struct import NeverIndexedHeaderTuple
from support.wire import Answer, Wire

__all__ = ["Fields", "Wire2"]

Fields = list[tuple[str, str]]

E = TypeVar("E", bound=Event)


class Wire2:
    """One end of a connection of HTTP/2 over `wire`, a client's or a server's.

    It may send what it likes: nothing of that is checked.
    """

    def __init__(self, wire: Wire, *, client: bool) -> None:
        self.wire = wire
        self.h2 = H2Connection(
            H2Configuration(
                client_side=client,
                header_encoding="latin-1",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._events: list[Event] = []
        self.h2.initiate_connection()
        self.flush()

    def ask(
        self, path: str, *fields: tuple[str, str], method: str = "GET", end: bool = True
    ) -> int:
        """Send the head of a request, and return its stream."""
        number = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":path", path)]
        self.head(number, [*pseudo, (":authority", "server"), *fields], end=end)
        return number

    def head(
        self,
        number: int,
        fields: Sequence[tuple[str, str] | NeverIndexedHeaderTuple],
        *,
        end: bool = False,
    ) -> None:
        """Send a head, or trailers."""
        self.h2.send_headers(number, fields, end_stream=end)
        self.flush()

    def say(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Send a part of a body."""
        self.h2.send_data(number, data, end_stream=end)
        self.flush()

    def pour(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Send a body of any size, and hear what comes meanwhile."""
        at = 0
        while at < len(data):
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            if room > 0:
                piece = data[at : at + room]
                at += len(piece)
                self.say(number, piece, end=end and at == len(data))
            else:
                self._receive()

    def answer(self, number: int, status: int = 200, body: bytes = b"ok") -> None:
        """Send a whole response."""
        self.head(number, [(":status", str(status))])
        self.say(number, body, end=True)

    def allow_streams(self, most: int) -> None:
        """Let the other side open `most` streams, and wait until it knows."""
        self.hear(SettingsAcknowledged)
        self.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: most})
        self.flush()
        self.hear(SettingsAcknowledged)

    def hear(self, kind: type[E], number: int | None = None) -> E:
        """Return the next event of `kind`, of a stream or of any; others are kept."""
        while True:
            for at, event in enumerate(self._events):
                if isinstance(event, kind) and number in (None, getattr(event, "stream_id", None)):
                    del self._events[at]
                    return event
            self._receive()

    def hear_request(self) -> tuple[int, Fields]:
        """Return the stream and the head of the next request."""
        event = self.hear(RequestReceived)
        return event.stream_id, _pairs(event.headers)

    def hear_trailers(self, number: int) -> Fields:
        """Return what comes behind the body of a stream."""
        return _pairs(self.hear(TrailersReceived, number).headers)

    def hear_answer(self, number: int) -> Answer:
        """Return a whole response."""
        head = _pairs(self.hear(ResponseReceived, number).headers)
        return Answer(status=int(head[0][1]), fields=head[1:], body=self.hear_body(number))

    def hear_body(self, number: int) -> bytes:
        """Return what is left of the body of a stream."""
        self.hear(StreamEnded, number)
        body = b""
        for event in [e for e in self._events if isinstance(e, DataReceived)]:
            if event.stream_id == number:
                body += event.data or b""
                self._events.remove(event)
        return body

    def hear_reset(self, number: int) -> int:
        """Return the code with which a stream is reset."""
        return int(self.hear(StreamReset, number).error_code or 0)

    def _receive(self) -> None:
        for event in self.h2.receive_data(self.wire.hear_any()):
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._events.append(event)
        self.flush()

    def flush(self) -> None:
        """Send what `h2` has to say."""
        data = self.h2.data_to_send()
        if data:
            self.wire.say(data)


def _pairs(headers: object) -> Fields:
    assert isinstance(headers, list)
    return [(str(name), str(value)) for name, value in headers]
