"""python-socketio's server, on asyncio under uvicorn. Says its port, then serves; `node_server.js` says what it does.

`python -m tests.workers.transports.socketio_servers.python_server PING_INTERVAL_MS PING_TIMEOUT_MS`
"""

import asyncio
import socket
import sys
from typing import Any

import socketio
import uvicorn


class Room(socketio.AsyncNamespace):
    async def on_connect(self, sid: str, environ: dict[str, Any], auth: Any) -> None:
        if not isinstance(auth, dict) or auth.get("token") != "good":
            raise socketio.exceptions.ConnectionRefusedError("Authentication error", {"code": "invalid_token"})
        headers = {"user-agent": environ.get("HTTP_USER_AGENT"), "host": environ.get("HTTP_HOST")}
        await self.emit("welcome", {"sid": sid, "auth": auth, "headers": headers}, to=sid)

    async def on_echo(self, sid: str, *arguments: Any) -> None:
        await self.emit("echoed", arguments, to=sid)

    async def on_add(self, sid: str, one: float, other: float) -> float:
        return one + other

    async def on_pair(self, sid: str, one: Any, other: Any) -> tuple[Any, Any]:
        return other, one

    async def on_never(self, sid: str) -> None:
        await asyncio.sleep(3600)

    async def on_ask(self, sid: str, *arguments: Any) -> None:
        async def answered(*answer: Any) -> None:
            await self.emit("answered", answer, to=sid)

        await self.emit("question", arguments, to=sid, callback=answered)

    async def on_many(self, sid: str, count: int, size: int) -> None:
        for number in range(count):
            await self.emit("item", (number, "x" * size), to=sid)

    async def on_kick(self, sid: str) -> None:
        await self.disconnect(sid)


async def main(interval: float, timeout: float) -> None:
    server = socketio.AsyncServer(
        async_mode="asgi", ping_interval=interval / 1000, ping_timeout=timeout / 1000, namespaces=["/", "/other"]
    )
    server.register_namespace(Room("/"))
    server.register_namespace(Room("/other"))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(socketio.ASGIApp(server), ws="wsproto", log_level="error")
    print(listener.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), float(sys.argv[2])))
