"""Calling a house over sockets of one's own: every byte that is sent, and every byte that comes back."""

import contextlib
import json
import socket

import trio

from tests.end_to_end.gateway import API_KEY
from tests.faults.house import House
from tests.faults.standing import MODEL
from tests.simulators.raw_client import Seen, receive_message, request_bytes


async def connect(house: House, **options: int) -> trio.SocketStream:
    sock = trio.socket.socket()
    for name, value in options.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    await sock.connect(("127.0.0.1", house.gateway.ports[0]))
    return trio.SocketStream(sock)


def chat(words: str = "hello", *, stream: bool = True, **fields: object) -> dict[str, object]:
    return {"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": words}], **fields}


def request(body: object, **headers: str) -> bytes:
    return request_bytes(
        body, **{"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"} | headers
    )  # fmt: skip


async def ask(house: House, payload: bytes) -> Seen:
    async with await connect(house) as stream:
        with trio.fail_after(20):
            await stream.send_all(payload)
            return await receive_message(stream)


async def post(house: House, body: object, **headers: str) -> Seen:
    return await ask(house, request(body, **headers))


def error(seen: Seen) -> dict[str, object]:
    found: dict[str, object] = json.loads(seen.body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


async def everything(stream: trio.SocketStream) -> bytes:
    heard = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while piece := await stream.receive_some(65536):
            heard += piece
    return heard
