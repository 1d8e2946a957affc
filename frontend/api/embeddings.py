"""`POST /v1/embeddings`: vectors, as numbers or as base64."""

import msgspec
from quart import Blueprint, Response

from frontend.api.asking import serve
from frontend.requests import EmbeddingRequest
from frontend.services import Services

_request = msgspec.json.Decoder(EmbeddingRequest)


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("embeddings", "sluice.embeddings")

    @routes.post("/v1/embeddings")
    async def embeddings() -> Response:
        return await serve(services, "embeddings", _request)

    return routes
