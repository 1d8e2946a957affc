"""`GET /metrics`: what this frontend counts, for Prometheus. Where it has no port of its own, it takes a master key."""

from quart import Blueprint, Response, request

from frontend.api.bodies import identify
from frontend.services import Services


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("metrics", "sluice.metrics")
    if services.settings.metrics_listen is not None:
        return routes

    @routes.get("/metrics")
    async def metrics() -> Response:
        caller = await identify(services.admission)
        if services.settings.auth == "on":
            services.admission.require_master(caller)
        content_type, text = await services.measures.scrape(request.headers.get("accept", ""))
        return Response(text, content_type=content_type, headers={"cache-control": "no-store"})

    return routes
