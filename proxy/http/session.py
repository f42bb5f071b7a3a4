"""Connections that requests come over, as both sides of a sidecar have them.

On a side there are many, each with a server, whose handler it is. What becomes of a request is the
side's own.
"""

from collections.abc import Callable

from meshrun.proxy.fanout import to_each
from meshrun.proxy.http.exchange import Downstream, Exchange, Server
from meshrun.proxy.http.heads import Request
from meshrun.proxy.http.link import Link
from meshrun.proxy.http.semantics import MULTIPLEXED
from meshrun.proxy.http.server1 import Http1Server
from meshrun.proxy.http.server2 import Http2Server
from meshrun.proxy.idleness import CONNECTION_IDLE_S, IdleWatch
from meshrun.proxy.messages import Protocol

__all__ = ["Session", "Sessions"]


class Session:
    """One connection: the handler of its server."""

    def __init__(self, sessions: "Sessions") -> None:
        self._sessions = sessions
        self._server: Server | None = None

    @property
    def over(self) -> bool:
        """Whether the connection is closed, or not served yet."""
        return self._server is None

    def serve(self, link: Link, protocol: Protocol) -> None:
        """Take requests over `link`; call its start."""
        server = (
            Http2Server(link, self, grpc=protocol == "grpc")
            if protocol in MULTIPLEXED
            else Http1Server(link, self)
        )
        self._server = server
        self._sessions.add(self)
        server.start()

    def retire(self) -> None:
        """Take no more requests."""
        if self._server is not None:
            self._server.retire()

    def reset(self, reason: str) -> None:
        """Cut the connection."""
        if self._server is not None:
            self._server.reset(reason)

    def idle_s(self) -> float:
        """Return how long nothing moved."""
        return 0.0 if self._server is None else self._server.idle_s()

    def spare_s(self) -> float:
        """Return for how long it could have been spared, 0 where it cannot."""
        return 0.0

    # The server's handler.

    def begin(self, request: Request, downstream: Downstream) -> Exchange:
        """Take a request."""
        raise NotImplementedError

    def refused(self, status: int, reason: str, *, begun: bool) -> None:
        """What came is no request, or no body of one."""
        raise NotImplementedError

    def closed(self) -> None:
        """The connection is over."""
        self._server = None
        self._sessions.forget(self)


class Sessions:
    """Those of one side that are open. `on_cut` hears why one was cut, on which nothing moved."""

    def __init__(self, on_cut: Callable[[str], None]) -> None:
        self._open: dict[Session, None] = {}  # the oldest in front
        self._idle = IdleWatch(lambda: self._open, on_cut)
        self._idle.set(CONNECTION_IDLE_S)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, session: Session) -> None:
        """There is another one."""
        self._open[session] = None
        self._idle.connected()

    def forget(self, session: Session) -> None:
        """It is over."""
        self._open.pop(session, None)

    def cut_spare(self, least_s: float) -> bool:
        """Cut the oldest that could be spared for over `least_s`; return whether there was one."""
        for session in self._open:
            if session.spare_s() > least_s:
                session.reset("its place was needed for another")
                return True
        return False

    def retire(self) -> None:
        """Take no more requests over those that there are; those under way go on."""
        to_each(self._open, Session.retire)

    def reset(self, reason: str) -> None:
        """Cut all."""
        to_each(self._open, lambda session: session.reset(reason))

    def close(self) -> None:
        """Watch nothing any more."""
        self._idle.close()
