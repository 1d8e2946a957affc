"""`POST /v1/completions`: texts that go on, as OpenAI's API did it before chats."""

import msgspec
from quart import Blueprint, Response

from frontend.api.asking import serve
from frontend.requests import CompletionRequest
from frontend.services import Services

_request = msgspec.json.Decoder(CompletionRequest)


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("completions", "sluice.completions")

    @routes.post("/v1/completions")
    async def completions() -> Response:
        return await serve(services, "completions", _request)

    return routes
