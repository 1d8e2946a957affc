"""`GET /openapi.json`: the endpoints of this gateway as an OpenAPI 3.1 document, made from the types that check requests."""

from typing import Any

import msgspec
from quart import Blueprint, Response

from frontend.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from frontend.services import Services
from shared.errors import KINDS


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("reference", "sluice.reference")
    document = msgspec.json.encode(openapi(services.version))

    @routes.get("/openapi.json")
    async def openapi_json() -> Response:
        return Response(document, content_type="application/json")

    return routes


def openapi(version: str) -> dict[str, Any]:
    """The document. Every error status of the table in `shared.errors` appears with the codes that it can have."""
    (chat, completion, embedding), components = msgspec.json.schema_components(
        [ChatRequest, CompletionRequest, EmbeddingRequest], ref_template="#/components/schemas/{name}"
    )
    components["Error"] = _ERROR
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sluice", "version": version, "description": "OpenAI-compatible gateway."},
        "security": [{"key": []}],
        "paths": {
            "/v1/chat/completions": _post(
                chat,
                "Answer a chat, whole or as a stream of chunks.",
                "A `chat.completion`, or with `stream` an event stream of `chat.completion.chunk`.",
                "text/event-stream",
            ),
            "/v1/completions": _post(
                completion,
                "Continue a text, whole or as a stream of chunks.",
                "A `text_completion`, or with `stream` an event stream of these.",
                "text/event-stream",
            ),
            "/v1/embeddings": _post(embedding, "Make vectors of texts.", "A list of `embedding`."),
            "/v1/models": {"get": _get("The models that live workers serve.")},
            "/v1/models/{id}": {
                "get": _get("One model; the id may contain `/` and `:`.")
                | {"parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]}
            },
            "/": {"get": _open("What this is.")},
            "/health": {"get": _open("State of the gateway, for people.")},
            "/health/live": {"get": _open("Whether the process runs.")},
            "/health/ready": {"get": _open("200 when requests can be served, 503 with the reasons otherwise.")},
            "/openapi.json": {"get": _open("This document.")},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _errors() -> dict[str, Any]:
    statuses: dict[int, set[str]] = {}
    for kind in KINDS.values():
        statuses.setdefault(kind.status, set()).add(kind.code or kind.name)
    return {
        str(status): {
            "description": ", ".join(sorted(codes)),
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status, codes in sorted(statuses.items())
    }


def _post(schema: dict[str, Any], summary: str, answer: str, *further_types: str) -> dict[str, Any]:
    answered = {"description": answer, "content": {kind: {} for kind in ("application/json", *further_types)}}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": answered} | _errors(),
        }
    }


def _get(summary: str) -> dict[str, Any]:
    errors = {status: answer for status, answer in _errors().items() if status in ("401", "404", "503")}
    return {
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": {"application/json": {}}}} | errors,
    }


def _open(summary: str) -> dict[str, Any]:
    return {"summary": summary, "security": [], "responses": {"200": {"description": "OK"}}}
