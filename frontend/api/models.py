"""`GET /v1/models` and `GET /v1/models/{id}`; ids may contain `/` and `:`."""

import msgspec
from quart import Blueprint, Response

from frontend.admission import Caller
from frontend.api.asking import may_use
from frontend.api.bodies import identify
from frontend.services import Services
from shared.schema.advertisement import Model


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("models", "sluice.models")

    @routes.get("/v1/models")
    async def list_models() -> Response:
        caller = await _admit(services)
        models = services.catalog.models(lambda route: may_use(caller, route))
        return _json({"object": "list", "data": [_object(model) for model in models]})

    @routes.get("/v1/models/<path:name>")
    async def one_model(name: str) -> Response:
        caller = await _admit(services)
        return _json(_object(services.catalog.model(name, lambda route: may_use(caller, route))))

    return routes


async def _admit(services: Services) -> Caller:
    caller = await identify(services.admission)
    if not (services.catalog.takes_callers_keys and caller.presented):
        services.admission.require(caller)
    return caller


def _object(model: Model) -> dict[str, object]:
    shown: dict[str, object] = {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }
    if model.context_tokens is not None:
        shown["context_window"] = model.context_tokens
    return shown


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), content_type="application/json")
