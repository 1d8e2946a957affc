"""What Quart-Trio needs to run on this server: settings that must not keep their defaults, and a body for streams."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, cast

from quart.wrappers.response import ResponseBody
from quart_trio import QuartTrio

from frontend.server.on_leave import OnLeave
from frontend.server.settings import ServerSettings

APP_ANSWERS_FIRST = 0.9


def prepare(app: QuartTrio, settings: ServerSettings, *, max_body_bytes: int) -> None:
    """Make `app` fit for streams: no limit on the duration of responses, limits on bodies, `OnLeave` around requests."""
    app.config.update(
        RESPONSE_TIMEOUT=None,  # 60 s by default, and then the body just stops
        # A little less than the server's limit, so that it is the app that says 408, in its own words.
        BODY_TIMEOUT=APP_ANSWERS_FIRST * settings.body_seconds,
        MAX_CONTENT_LENGTH=max_body_bytes,
        BACKGROUND_TASK_SHUTDOWN_TIMEOUT=0.2,  # None would cancel at once, the default waits 5 s
    )
    # Quart's own types for ASGI are narrower than ours; wrapping `asgi_app` is the way that its documentation shows.
    app.asgi_app = cast(Any, OnLeave(cast(Any, app.asgi_app)))  # type: ignore[method-assign]


class StreamBody(ResponseBody):
    """A response body made of an async iterator of bytes; what it yields is sent in one piece, as soon as it is there.

    `Response(StreamBody(iterator), content_type="text/event-stream")`. Quart-Trio wraps anything but an async generator
    in a generator of its own and takes an async iterator for a synchronous one; this hands it over as it is. An empty
    piece is not sent. If the iterator has `aclose`, it is awaited at the end, but only if the response has begun:
    what must happen in any case is registered with `on_leave`.
    """

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        aclose: Any = getattr(self._pieces, "aclose", None)
        if aclose is not None:
            await aclose()
