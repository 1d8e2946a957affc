"""Apps that the server is tested with: a small ASGI app whose paths say what it does."""

import trio

HEADERS = [(b"content-type", b"text/plain")]


def start(status=200, *headers):
    return {"type": "http.response.start", "status": status, "headers": [*HEADERS, *headers]}


def body(data, *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


async def answer(send, data, status=200):
    await send(start(status, (b"content-length", b"%d" % len(data))))
    await send(body(data))


async def whole_body(receive):
    data = b""
    while (message := await receive())["type"] == "http.request":
        data += message["body"]
        if not message["more_body"]:
            return data
    return None  # the client left in the middle of its body


async def no_lifespan(receive, send):
    while True:
        stage = (await receive())["type"]
        await send({"type": stage + ".complete"})
        if stage == "lifespan.shutdown":
            return


async def demo(scope, receive, send):
    """`/echo` gives the body back, `/stream/N` N pieces, `/refuse` 413 before the body is read, else the path."""
    if scope["type"] == "lifespan":
        return await no_lifespan(receive, send)
    path = scope["path"]
    if path == "/refuse":
        return await answer(send, b"too large", 413)
    data = await whole_body(receive)
    if data is None:
        return None
    if path == "/echo":
        await answer(send, data)
    elif path.startswith("/stream/"):
        await send(start())
        for number in range(int(path.rpartition("/")[2])):
            await trio.lowlevel.checkpoint()
            await send(body(b"piece %d\n" % number, more=True))
        await send(body(b""))
    else:
        await answer(send, f"{scope['method']} {path}".encode())


class Waiting:
    """An app that sends what it is given to send, and shows when it is called and when it is told to go."""

    def __init__(self, *pieces, status=200):
        self.pieces = pieces
        self.status = status
        self.calls = 0
        self.departures = 0
        self.called = trio.Event()
        self.told = trio.Event()
        self.finish = trio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        self.calls += 1
        self.called.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._respond, send, nursery)
            while (await receive())["type"] == "http.request":
                pass
            self.departures += 1
            self.told.set()
            nursery.cancel_scope.cancel()

    async def _respond(self, send, nursery):
        if self.pieces:
            await send(start(self.status))
            for piece in self.pieces:
                await send(body(piece, more=True))
        await self.finish.wait()
        if not self.pieces:
            await send(start(self.status))
        await send(body(b""))
        nursery.cancel_scope.cancel()
