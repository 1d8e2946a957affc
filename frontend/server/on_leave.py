"""Tells the parts of a request when it is over for its client, however that comes about.

A client's departure reaches an app in shapes that a body generator's `finally` does not cover: Cancelled while it waits,
GeneratorExit while a send is blocked, and nothing at all if the client leaves between the return of the view and the first
byte, for then the generator never starts. What always ends is the call of the app itself.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from frontend.server.hypercorn_parts import AsgiApp, Receive, Send

SCOPE_KEY = "sluice.on_leave"


def on_leave(scope: Any, function: Callable[[], object]) -> None:
    """Have `function` called when the request of this ASGI scope is over; the app must run inside `OnLeave`."""
    scope[SCOPE_KEY].append(function)


class OnLeave:
    """ASGI middleware: calls what a request has put in `scope["sluice.on_leave"]`, once each, when its call ends.

    The list takes synchronous functions without arguments; they run in the task of the request, last in first out, also
    when it is being cancelled, and every one of them even if another raises. What has become needless may be removed.
    They run after complete responses too: a function that cancels has to know whether there is anything left to cancel.
    """

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        functions: list[Callable[[], object]] = []
        scope[SCOPE_KEY] = functions
        try:
            await self._app(scope, receive, send)
        finally:
            with ExitStack() as stack:
                for function in functions:
                    stack.callback(function)
