"""`GET /admin/overview` and `GET /admin/live`: what the whole installation is doing, for holders of a master key."""

import msgspec
from quart import Blueprint, Response

from frontend.api.bodies import identify, on_leave
from frontend.server import StreamBody
from frontend.services import Services
from shared.errors import fail
from shared.redis.failures import RedisError


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("dashboard", "sluice.dashboard")

    @routes.get("/admin/overview")
    async def overview() -> Response:
        await _admit(services)
        try:
            found = await services.lookout.read()
        except RedisError:
            raise fail("queue_unavailable", "Redis does not answer; try again in a few seconds.") from None
        return Response(msgspec.json.encode(found), content_type="application/json", headers=_UNSTORED)

    @routes.get("/admin/live")
    async def live() -> Response:
        await _admit(services)
        watcher = services.live.watch()
        on_leave(services.live.leave)
        return Response(
            StreamBody(watcher),
            content_type="text/event-stream; charset=utf-8",
            headers=_UNSTORED | {"x-accel-buffering": "no"},
        )

    return routes


async def _admit(services: Services) -> None:
    services.admission.require_master(await identify(services.admission))


_UNSTORED = {"cache-control": "no-store"}
