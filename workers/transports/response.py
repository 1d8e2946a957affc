"""Parses one HTTP/1.1 response from bytes, without I/O, within limits that no upstream can talk us out of.

The grammar is llhttp's in its strict mode (through httptools); it already refuses bare LF, obsolete folding,
`Content-Length` twice or beside `Transfer-Encoding`, and sizes that overflow. What llhttp does not decide is
decided here:

* llhttp never hears that the stream has ended, so a body that is cut must be told from one that ends with the
  connection (RFC 9112 section 6.3): only a response with neither length nor chunks may end that way.
* llhttp keeps no count: heads, trailers and interim (1xx) responses could grow without end.
* `101` is refused, since we never ask for an upgrade, and so is every transfer coding but a single `chunked`.
"""

import httptools

from workers.exchange import Disconnected, ProtocolViolation

HEAD_BYTES = 64 * 1024
"""Limit of all header fields of a response together, trailers and interim responses included."""
HEAD_FIELDS = 200
"""Limit of the number of those fields."""
BARREN_BYTES = 64 * 1024
"""Limit of bytes in a row that carry no body: a head, a trailer or a chunk extension without end."""
INTERIM_RESPONSES = 16
"""Limit of 1xx responses before the real one."""


class _HeadIsAll(Exception):
    """Stops llhttp after the head of a response that has no body whatever its header fields claim."""


class ResponseParser:
    """One response: `feed` it what arrives, `take` the body each time.

    `head_only`: the response has no body, since it answers HEAD or CONNECT (RFC 9112 section 6.3).
    """

    __slots__ = (
        "_barren",
        "_fields",
        "_head_bytes",
        "_head_only",
        "_interim",
        "_keep_alive",
        "_parser",
        "_parts",
        "_surplus",
        "_until_close",
        "complete",
        "head_complete",
        "headers",
        "on_body",
        "started",
        "status",
    )

    def __init__(self, *, head_only: bool = False) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """Fields of the head in order, names in lower case."""
        self.started = False
        self.head_complete = False
        self.complete = False
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        self._head_only = head_only
        self._keep_alive = False
        self._until_close = False
        self._surplus = False
        self._head_bytes = 0
        self._fields = 0
        self._interim = 0
        self._barren = 0
        self._parser = httptools.HttpResponseParser(self)

    @property
    def reusable(self) -> bool:
        """The connection may carry another request: the answer is complete and nothing came behind it."""
        return self.complete and self._keep_alive and not self._surplus and not self._head_only

    def feed(self, data: bytes) -> None:
        """Take in what one read gave. Raises ProtocolViolation.

        Bytes behind a complete answer are no error of that answer; they only make the connection unusable.
        """
        self.started = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.complete:
                self._surplus = True
                return
            cause = error.__context__
            if isinstance(cause, ProtocolViolation):
                raise cause from None
            raise ProtocolViolation(f"malformed response: {error}") from error
        if self._parts:
            self._barren = 0
        elif not self.complete:
            self._barren += len(data)
            if self._barren > BARREN_BYTES:
                raise ProtocolViolation(f"more than {BARREN_BYTES} bytes in a row without any body")

    def take(self) -> bytes:
        """The body bytes that have arrived since the last time; b"" if none have."""
        parts = self._parts
        if not parts:
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return data

    def end(self) -> None:
        """The peer has closed its side. Raises Disconnected unless the answer ends with the connection."""
        if self.complete:
            return
        if not (self.head_complete and self._until_close):
            where = "in the middle of" if self.started else "before"
            raise Disconnected(f"the upstream closed the connection {where} its answer", response_started=self.started)
        self.complete = True

    # What follows is called by llhttp, in this order, as it recognises things.

    def on_message_begin(self) -> None:
        if self.complete:
            raise ProtocolViolation("bytes behind the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._fields > HEAD_FIELDS:
            raise ProtocolViolation(f"more than {HEAD_FIELDS} header fields")
        if self._head_bytes > HEAD_BYTES:
            raise ProtocolViolation(f"more than {HEAD_BYTES} bytes of header fields")
        if not self.head_complete:  # else a trailer, which nobody asked for
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101 or status < 100:
            raise ProtocolViolation(f"unexpected status {status}")
        if status < 200:
            self._interim += 1
            if self._interim > INTERIM_RESPONSES:
                raise ProtocolViolation(f"more than {INTERIM_RESPONSES} interim responses")
            self.headers.clear()
            return
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            raise ProtocolViolation("unexpected HTTP version")
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise ProtocolViolation("unexpected transfer coding")
        self.status = status
        self.head_complete = True
        self._keep_alive = self._parser.should_keep_alive()
        self._until_close = not codings and all(name != b"content-length" for name, _ in self.headers)
        if self._head_only:
            self.complete = True
            raise _HeadIsAll

    def on_message_complete(self) -> None:
        self.complete = self.head_complete  # an interim response completes a message, not the answer
