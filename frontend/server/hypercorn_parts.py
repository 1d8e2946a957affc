"""The one place that knows Hypercorn: which of its parts the server is built from, and what it relies on.

Written against Hypercorn 0.18.0, whose programmatic interface ends at `hypercorn.trio.serve`. The parts below have public
names but no promise of stability, so `tests/frontend/server/test_hypercorn_parts.py` fails when a version changes their shape.

=========================  ===================================================================================
part                       what is relied on
=========================  ===================================================================================
`H11Protocol`              `handle(event)` turns bytes into events for its stream, `send` is called with what to
                           do; `connection` is the parser and may be replaced before the first byte
`HTTPStream` (inside it)   calls `task_group.spawn_app(app, config, scope, send)` once per request and delivers
                           ASGI messages to what that returns; `send(None)` means that the app has ended
`RawData, Closed, Updated`  `send`'s argument: write this; hang up; the connection is idle again
`WorkerContext`            `terminated`: once set, responses end their connections
`Lifespan`                 runs the app's start-up and shut-down
=========================  ===================================================================================

Neither `H11Protocol` nor `HTTPStream` ever waits for anything but `send`, `spawn_app` and its deliveries. All of these are
ours and return at once (one exception: delivering a body to an app that does not take it), so from the app's last message
to the idle connection nothing can be cancelled half-way. `hypercorn.trio.TCPServer` is not used: its shielded writes
without a limit, reader that waits while a request is answered, and idle timer that a cancelled app takes along are the
defects that `connection.py` is here to mend.
"""

import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import h11
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup

from frontend.server.settings import ServerSettings

__all__ = [
    "Closed",
    "Config",
    "Event",
    "H11Protocol",
    "Lifespan",
    "RawData",
    "Updated",
    "WorkerContext",
    "make_config",
    "make_lifespan",
    "make_protocol",
]

log = logging.getLogger("frontend.server")

Message = dict[str, Any]
"""An ASGI message, as the ASGI specification writes it."""
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Any, Receive, Send], Awaitable[None]]
Address = tuple[str, int]


class AppStarter(Protocol):
    """What Hypercorn asks of its task group: a running app, and where to deliver its messages."""

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Message | None], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]: ...


def make_config(settings: ServerSettings) -> Config:
    config = Config()
    config.accesslog = None  # the app writes one line per request, with what it alone knows
    config.errorlog = log
    config.include_server_header = False
    config.keep_alive_max_requests = sys.maxsize
    config.h11_max_incomplete_size = settings.max_header_bytes
    config.startup_timeout = config.shutdown_timeout = 30
    return config


def make_lifespan(app: AsgiApp, config: Config) -> Lifespan:
    return Lifespan(ASGIWrapper(cast(Any, app)), config, ConnectionState({}))


def make_protocol(
    *,
    config: Config,
    context: WorkerContext,
    starter: AppStarter,
    parser: h11.Connection,
    client: Address,
    server: Address,
    send: Callable[[Event], Awaitable[None]],
) -> H11Protocol:
    """Hypercorn's HTTP/1.1 protocol for one connection. It is handed no app: `starter` knows it."""
    no_app = cast(AppWrapper, None)
    task_group = cast(TaskGroup, starter)
    protocol = H11Protocol(
        no_app, config, context, task_group, ConnectionState({}), ssl=False, client=client, server=server, send=send
    )
    protocol.connection = parser
    return protocol


async def end_keep_alive(config: Config, context: WorkerContext) -> None:
    """From now on every response says `Connection: close` and is its connection's last."""
    config.keep_alive_max_requests = 0
    await context.terminated.set()
