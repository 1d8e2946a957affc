"""`POST /v1/chat/completions`."""

import msgspec
from quart import Blueprint, Response

from frontend.api.asking import serve
from frontend.requests import ChatRequest
from frontend.services import Services

_request = msgspec.json.Decoder(ChatRequest)


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("chat", "sluice.chat")

    @routes.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        return await serve(services, "chat", _request)

    return routes
