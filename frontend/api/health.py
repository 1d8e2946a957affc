"""`/`, `/health`, `/health/live` and `/health/ready`: no key needed, and nothing secret said."""

import time

import msgspec
from quart import Blueprint, Response

from frontend.services import Services


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("health", "sluice.health")

    @routes.get("/")
    async def root() -> Response:
        return _json(
            {
                "service": "sluice",
                "version": services.version,
                "api": "/v1",
                "endpoints": [
                    "/v1/chat/completions",
                    "/v1/completions",
                    "/v1/embeddings",
                    "/v1/models",
                    "/health",
                    "/openapi.json",
                ],
                "pages": ["/docs", "/playground", "/dashboard"] if services.settings.pages else [],
            }
        )

    @routes.get("/health")
    async def health() -> Response:
        problems = services.readiness()
        return _json(
            {
                "status": "degraded" if problems else "healthy",
                "service": "sluice",
                "version": services.version,
                "timestamp": int(time.time()),
                "problems": problems,
                "workers": len(services.catalog.workers),
                "models": len(services.catalog.models()),
                "open_requests": len(services.jobs),
            }
        )

    @routes.get("/health/live")
    async def live() -> Response:
        return _json({"status": "ok"})

    @routes.get("/health/ready")
    async def ready() -> Response:
        problems = services.readiness()
        response = _json({"status": "not ready" if problems else "ready", "problems": problems})
        response.status_code = 503 if problems else 200
        return response

    return routes


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), content_type="application/json", headers={"cache-control": "no-store"})
