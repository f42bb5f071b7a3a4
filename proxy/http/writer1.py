"""The sending half of HTTP/1, the same for requests and responses: heads and bodies over a link."""

from meshrun.proxy.http.body1 import chunk, last_chunk
from meshrun.proxy.http.heads import Fields
from meshrun.proxy.http.link import Link

__all__ = ["Writer"]

# What is copied to be sent together with what comes next, rather than sent by itself.
COPIED_BYTES = 16 * 1024


class Writer:
    """Collects what is sent to `_link` until it is flushed; a base of the two codecs."""

    __slots__ = ("_chunking", "_link", "_out")

    def __init__(self, link: Link) -> None:
        self._link = link
        self._out: list[bytes] = []
        self._chunking = False  # the body under way is sent in chunks

    def send(self, data: bytes | memoryview) -> None:
        """Send a part of the body."""
        if self._chunking:
            self._out.append(chunk(data))
        elif len(data) < COPIED_BYTES:
            self._out.append(bytes(data))
        else:
            self._write_out()
            self._link.write(data)

    def _end_chunks(self, trailers: Fields) -> None:
        self._chunking = False
        self._out.append(last_chunk(trailers))

    def _write_out(self) -> None:
        out = self._out
        if out:
            self._link.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
