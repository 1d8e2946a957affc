"""h11's view of a client's bytes, made strict and never in the way of reading.

Pure: bytes in, events out. Four things differ from h11, each through its public interface:

* **Strict.** What two parsers could read in two ways is refused, so no proxy in front can be made to disagree with us about
  where a request ends (RFC 9112, sections 2.2, 5.2, 6.1, 6.3, 11.2): bare line feeds, folded headers, a length beside a
  transfer coding or given twice, transfer codings in HTTP/1.0. HTTP/1.0 and 1.1 are spoken and nothing else, so neither
  the `h2c` upgrade nor HTTP/2 by prior knowledge passes, and CONNECT is not for us.
* **Never pausing.** While a response is under way h11 answers PAUSED as soon as a byte waits behind the request, which asks
  its user to stop reading; a user who stops reading does not see the client leave. Here the bytes wait and h11 asks for
  more. `waiting_bytes()` says how many there are, for the user to bound.
* **Saying why.** A refusal carries OpenAI's error object instead of nothing, and what a web page needs to read it.
* **Forgiving of one thing:** empty lines before a request (RFC 9112, 2.2), which old clients send after a body.

The end of the connection is not told here: the reader knows it first, and tells the protocol in its own way.
"""

import re
from collections.abc import Callable
from typing import Any

import h11

from frontend.server.refusals import refusal
from frontend.server.settings import Headers, no_headers

_LENGTHS = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)
_ORIGIN = re.compile(rb"\r\norigin:[ \t]*([^\r\n]*[^\r\n \t])", re.IGNORECASE)
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_TERMINATOR = b"\r\n\r\n"
_MALFORMED = {
    400: "The request is not well-formed HTTP/1.1.",
    431: "The head of the request is too large.",
    501: "Of all transfer codings only `chunked` is understood.",
}
"""For what h11 itself refuses. Its own texts quote the client's bytes, among which may be a key."""


class RequestParser(h11.Connection):
    """The server's end of one connection, for Hypercorn's `H11Protocol`, which takes it for an `h11.Connection`."""

    def __init__(
        self,
        *,
        max_header_bytes: int,
        max_headers: int,
        refusal_headers: Callable[[bytes | None], Headers] = no_headers,
    ) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self._refusal_headers = refusal_headers
        self._origin: bytes | None = None
        self._max_header_bytes = max_header_bytes
        self._max_headers = max_headers
        self._chunked_tail: bytes | None = None
        self._is_head = False
        self._refusal: tuple[int, str] | None = None
        self.on_hold = False
        """Begin no new request: the last response is not out yet, and answers must not pile up behind it."""

    def waiting_bytes(self) -> int:
        """Bytes received that no event has told of yet: a part of a head, or what waits behind a complete request."""
        return len(self.trailing_data[0])

    def receive_data(self, data: bytes) -> None:
        if self.their_state is h11.IDLE and not self.waiting_bytes():
            data = data.lstrip(b"\r\n")
        if self._chunked_tail is not None:
            self._chunked_tail = self._chunked_tail[-len(_TERMINATOR) :] + data
        if data:  # nothing would mean the end to h11
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA  # what follows a last request is nobody's; h11 would answer it before the request
        try:
            event = self._next_request() if self.their_state is h11.IDLE else super().next_event()
            if isinstance(event, h11.EndOfMessage) and self._chunked_tail is not None:
                self._check_chunked_end(self._chunked_tail)
        except _Refused as error:
            self._refusal = (error.error_status_hint, str(error))
            raise
        except h11.RemoteProtocolError as error:
            self._refusal = (error.error_status_hint, _MALFORMED.get(error.error_status_hint, _MALFORMED[400]))
            raise
        return h11.NEED_DATA if event is h11.PAUSED else event

    def send(self, event: h11.Event) -> Any:  # h11 declares one overload per kind of event
        if not isinstance(event, h11.Response):
            return super().send(event)
        if self._refusal is not None:
            (status, message), self._refusal = self._refusal, None
            return self._begin_refusal(status, message)
        if self.their_state is h11.SEND_BODY:
            # Who is answered before all was heard could otherwise send a next request into a connection that closes.
            headers = [*event.headers.raw_items(), (b"connection", b"close")]
            event = h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
        return super().send(event)

    def refuse(self, status: int, message: str) -> bytes:
        """A whole response that refuses the request; possible as long as no response has begun."""
        return self._begin_refusal(status, message) + super().send(h11.EndOfMessage())

    def _begin_refusal(self, status: int, message: str) -> bytes:
        headers, body = refusal(status, message)
        headers += self._refusal_headers(self._origin)
        head = super().send(h11.Response(status_code=status, headers=headers))
        return head if self._is_head else head + super().send(h11.Data(data=body))

    def start_next_cycle(self) -> None:
        super().start_next_cycle()
        waiting = self.trailing_data[0]
        self._chunked_tail = None
        if waiting[:1] in {b"\r", b"\n"}:
            # h11 takes nothing back, so the empty lines are left behind with its old self.
            super().__init__(h11.SERVER, self._max_header_bytes)
            self.receive_data(waiting)

    def _next_request(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.on_hold:
            return h11.NEED_DATA
        received = self.trailing_data[0]
        origin = _ORIGIN.search(received)
        self._origin = origin[1] if origin else None
        event = super().next_event()
        if not isinstance(event, h11.Request):
            return event
        names = {name for name, _value in event.headers}
        self._is_head = event.method == b"HEAD"
        self._check_head(received[: len(received) - self.waiting_bytes()], event, names)
        self._chunked_tail = received if b"transfer-encoding" in names else None
        if b"upgrade" in names or not event.target.startswith(b"/"):
            return _plain_request(event)
        return event

    def _check_head(self, head: bytes, request: h11.Request, names: set[bytes]) -> None:
        """Raise for a head that is too large, or that somebody else could read differently."""
        if len(head) > self._max_header_bytes or len(request.headers) > self._max_headers:
            raise _Refused(431, "The head of the request is too large.")
        if request.http_version not in {b"1.0", b"1.1"}:
            raise _Refused(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        if request.method == b"CONNECT":
            raise _Refused(405, "This is not a proxy.")
        if head.count(b"\n") != head.count(b"\r\n") or b"\n " in head or b"\n\t" in head:
            raise _Refused(400, "A line of the head ends without CR or is folded.")
        if b"content-length" in names:
            lengths = _LENGTHS.findall(head)
            if len(lengths) > 1 or b"," in lengths[0]:
                raise _Refused(400, "Content-Length is given twice.")
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
            raise _Refused(400, "Transfer-Encoding is combined with Content-Length or HTTP/1.0.")
        asterisk = request.method == b"OPTIONS" and request.target == b"*"
        if not (request.target.startswith(b"/") or _ABSOLUTE_FORM.match(request.target) or asterisk):
            raise _Refused(400, "The request target is malformed.")

    def _check_chunked_end(self, tail: bytes) -> None:
        """h11 takes a bare line feed for the empty line that ends a chunked body; a proxy might not."""
        end = len(tail) - self.waiting_bytes()
        if tail[max(0, end - len(_TERMINATOR)) : end] != _TERMINATOR:
            raise _Refused(400, "The chunked body ends with a bare line feed.")


class _Refused(h11.RemoteProtocolError):
    """Well-formed to h11, refused here. The text is for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message, error_status_hint=status)


def _plain_request(request: h11.Request) -> h11.Request:
    """The request without what must not reach Hypercorn or the app: an `Upgrade`, and a host in front of the path."""
    target = _ABSOLUTE_FORM.sub(b"", request.target, count=1)
    if not target.startswith((b"/", b"*")):
        target = b"/" + target
    return h11.Request(
        method=request.method,
        headers=[(name, value) for name, value in request.headers if name != b"upgrade"],
        target=target,
        http_version=request.http_version,
    )
