"""A client that shows what really came over the socket, also when it is not HTTP; for tests of the simulators."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import trio

from tests.simulators.http_server import Simulator

HELLO = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "hello wide world"}]}


@dataclass(slots=True)
class Seen:
    """Everything that arrived until the connection or the message ended, and how it ended."""

    raw: bytes = b""
    ended: Literal["complete", "closed", "reset"] = "closed"
    body: bytes = b""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


def request_bytes(
    body: Any = None, *, path: str = "/v1/chat/completions", method: str = "POST", **headers: str
) -> bytes:
    """One request; keyword arguments are headers, `_` standing for `-`."""
    payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: upstream", f"Content-Length: {len(payload)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + payload


def chat(words: str, **fields: Any) -> dict[str, Any]:
    """The body of a streamed chat request with that user message."""
    return {**HELLO, "messages": [{"role": "user", "content": words}], **fields}


@asynccontextmanager
async def connected(upstream: Simulator) -> AsyncIterator[trio.SocketStream]:
    stream = await trio.open_tcp_stream("127.0.0.1", upstream.port)
    async with stream:
        yield stream


async def receive_message(stream: trio.SocketStream) -> Seen:
    """Read until the HTTP message is complete, or the connection ends."""
    seen = Seen()
    try:
        while chunk := await stream.receive_some(65536):
            seen.raw += chunk
            if seen.raw.endswith(b"0\r\n\r\n") or b"\r\nTransfer-Encoding: chunked" not in seen.raw:
                _parse(seen)  # not after every chunk: a long answer would be parsed over and over
            if seen.ended == "complete":
                return seen
    except trio.BrokenResourceError:
        seen.ended = "reset"
    ended = seen.ended
    _parse(seen)
    seen.ended = ended
    return seen


async def ask(upstream: Simulator, body: Any = None, **options: Any) -> Seen:
    """One request on a connection of its own."""
    async with connected(upstream) as stream:
        await stream.send_all(request_bytes(body, **options))
        return await receive_message(stream)


def _parse(seen: Seen) -> None:
    final = seen.raw
    while final.startswith(b"HTTP/1.1 103"):
        final = final.partition(b"\r\n\r\n")[2]
    head, separator, rest = final.partition(b"\r\n\r\n")
    if not separator or not head.startswith(b"HTTP/1.1 "):
        return
    lines = head.decode("latin-1").split("\r\n")
    seen.status = int(lines[0].split()[1])
    seen.headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines[1:])}
    if "content-length" in seen.headers:
        seen.body = rest
        if len(rest) == int(seen.headers["content-length"]):
            seen.ended = "complete"
    elif seen.headers.get("transfer-encoding") == "chunked":
        _parse_chunks(seen, rest)


def _parse_chunks(seen: Seen, rest: bytes) -> None:
    pieces = []
    while (end := rest.find(b"\r\n")) >= 0:
        size = int(rest[:end], 16)
        if len(rest) < end + 4 + size:
            break
        if size == 0:
            seen.ended = "complete"
            break
        pieces.append(rest[end + 2 : end + 2 + size])
        rest = rest[end + 4 + size :]
    seen.body = b"".join(pieces)


def events(body: bytes) -> list[str]:
    """The `data:` payloads of an event stream."""
    lines = body.decode("utf-8", "surrogateescape").replace("\r\n", "\n").split("\n")
    return [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]


def said(body: bytes) -> str:
    """The text of choice 0 in an OpenAI event stream, odd events left out."""
    text = ""
    for payload in events(body):
        try:
            chunk = json.loads(payload)
            text += chunk["choices"][0]["delta"].get("content") or ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            continue
    return text
