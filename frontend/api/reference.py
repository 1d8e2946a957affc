"""`GET /openapi.json`: the endpoints of this gateway as an OpenAPI 3.1 document, made from the types that check requests."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from quart import Blueprint, Response

from frontend.api.headers import ANSWER_HEADERS, REQUEST_HEADERS
from frontend.api.meanings import MEANINGS
from frontend.api.operations import OPERATIONS, Operation
from frontend.api.samples import samples
from frontend.services import Services
from shared.errors import KINDS

_TO_MODELS: Final = "post"
_ADMINISTRATIVE: Final = ("400", "401", "403", "404", "503")
_READING: Final = ("401", "404", "503")


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("reference", "sluice.reference")
    document = msgspec.json.encode(openapi(services.version))

    @routes.get("/openapi.json")
    async def openapi_json() -> Response:
        return Response(document, content_type="application/json")

    return routes


def openapi(version: str) -> dict[str, Any]:
    """The document. Every error status of the table in `shared.errors` appears with the codes that it can have."""
    types = {kind for operation in OPERATIONS for kind in (operation.asks, operation.shape) if kind is not None}
    ordered = sorted(types, key=lambda kind: kind.__name__)
    references, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    for kind in ordered:
        if any(operation.asks is kind for operation in OPERATIONS):
            _explain(components[kind.__name__])
    components["Error"] = _ERROR
    schemas = dict(zip(ordered, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sluice", "version": version, "description": "OpenAI-compatible gateway."},
        "security": [{"key": []}],
        "tags": [{"name": name} for name in dict.fromkeys(operation.group for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Any key of this gateway."},
                "master": {"type": "http", "scheme": "bearer", "description": "A key of SLUICE_API_KEY."},
            },
        },
    }


def _explain(schema: dict[str, Any]) -> None:
    for name, field in schema["properties"].items():
        field["description"] = MEANINGS.get(name, "")


def _operation(operation: Operation, schemas: dict[type[msgspec.Struct], dict[str, Any]]) -> dict[str, Any]:
    contents: dict[str, Any] = {kind: {} for kind in operation.types}
    if operation.shape is not None:
        contents["application/json"] = {"schema": schemas[operation.shape]}
    elif operation.example_answer is not None:
        contents[operation.types[-1]] = {"example": operation.example_answer}
    answered: dict[str, Any] = {"description": operation.answers, "content": contents}
    if operation.sdk:
        answered["headers"] = {
            name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in ANSWER_HEADERS.items()
        }
    described: dict[str, Any] = {
        "tags": [operation.group],
        "summary": operation.summary,
        "responses": {"200": answered} | _errors(statuses(operation)),
        "x-codeSamples": [{"lang": language, "source": text} for language, text in samples(operation).items()],
    }
    if operation.detail:
        described["description"] = operation.detail
    if operation.access != "key":
        described["security"] = [{"master": []}] if operation.access == "master" else []
    parameters = _parameters(operation)
    if parameters:
        described["parameters"] = parameters
    if operation.asks is not None:
        content = {"schema": schemas[operation.asks], "example": operation.example}
        described["requestBody"] = {
            "required": not operation.body_optional,
            "content": {"application/json": content},
        }
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    """Of path, query and, where models are asked, headers."""
    found: list[dict[str, Any]] = [
        {
            "name": one.name, "in": one.where, "required": one.where == "path", "description": one.meaning,
            "schema": {"type": "string"}, "example": one.example,
        }
        for one in operation.parameters
    ]  # fmt: skip
    if operation.sdk and operation.asks is not None:
        found += [
            {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}
            for name, meaning in REQUEST_HEADERS.items()
        ]
    return found


def statuses(operation: Operation) -> Sequence[str]:
    """The error statuses that an operation can answer with."""
    if operation.access == "open":
        return ("503",) if operation.path == "/health/ready" else ()
    if operation.access == "master":
        return _ADMINISTRATIVE
    return sorted({str(kind.status) for kind in KINDS.values()}) if operation.method == _TO_MODELS else _READING


def _errors(wanted: Sequence[str]) -> dict[str, Any]:
    codes: dict[str, set[str]] = {}
    for kind in KINDS.values():
        codes.setdefault(str(kind.status), set()).add(kind.code or kind.name)
    return {
        status: {
            "description": ", ".join(sorted(codes[status])),
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status in wanted
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
