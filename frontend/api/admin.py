"""`/admin/keys`: callers' keys, for holders of a master key (one of `SLUICE_API_KEY`)."""

import logging
import time
from collections.abc import Awaitable
from typing import TypeVar

import msgspec
from quart import Blueprint, Response

from frontend.admission import Caller
from frontend.api.bodies import identify, json_body
from frontend.key_requests import read_changes, read_grace, shown
from frontend.services import Services
from shared.errors import fail
from shared.redis.callers import RevokedKey, UnknownKey
from shared.redis.failures import RedisError
from shared.schema.caller import CallerKey

_log = logging.getLogger(__name__)
T = TypeVar("T")


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("admin", "sluice.admin")
    store = services.admission.store

    @routes.post("/admin/keys")
    async def create_key() -> Response:
        master = await admit(services)
        wanted = CallerKey("", **read_changes(await json_body(), time.time()))
        made, key = await carried_out(store.create(wanted))
        _note(master, "created", made)
        return _answer(made, key=key)

    @routes.get("/admin/keys")
    async def list_keys() -> Response:
        await admit(services)
        now = time.time()
        found = await carried_out(store.all())
        return unstored({"object": "list", "data": [shown(key, now) for key in found]})

    @routes.get("/admin/keys/<key_id>")
    async def one_key(key_id: str) -> Response:
        await admit(services)
        return _answer(await carried_out(store.get(key_id)))

    @routes.patch("/admin/keys/<key_id>")
    async def update_key(key_id: str) -> Response:
        master = await admit(services)
        changes = read_changes(await json_body(), time.time())
        changed = await carried_out(store.update(key_id, lambda key: msgspec.structs.replace(key, **changes)))
        _note(master, "changed", changed)
        return _answer(changed)

    @routes.delete("/admin/keys/<key_id>")
    async def revoke_key(key_id: str) -> Response:
        master = await admit(services)
        revoked = await carried_out(store.revoke(key_id))
        _note(master, "revoked", revoked)
        return _answer(revoked)

    @routes.post("/admin/keys/<key_id>/rotate")
    async def rotate_key(key_id: str) -> Response:
        master = await admit(services)
        grace_seconds = read_grace(await json_body(optional=True))
        rotated, key = await carried_out(store.rotate(key_id, grace_seconds))
        _note(master, "rotated", rotated)
        return _answer(rotated, key=key)

    return routes


async def admit(services: Services) -> Caller:
    """The caller of the current request, who holds a master key. Raises `GatewayError`: `invalid_api_key`, `permission`."""
    caller = await identify(services.admission)
    services.admission.require_master(caller)
    return caller


def unstored(value: object) -> Response:
    """An answer that nobody keeps."""
    return Response(msgspec.json.encode(value), content_type="application/json", headers={"cache-control": "no-store"})


def _answer(record: CallerKey, key: str | None = None) -> Response:
    """`key`: the key itself, which is shown this once."""
    return unstored(shown(record, time.time()) | ({"key": key} if key is not None else {}))


async def carried_out(change: Awaitable[T]) -> T:
    """What comes of a question or a change in Redis.

    Raises `GatewayError`: `key_not_found`, `invalid_request` for a key that was revoked, `queue_unavailable`.
    """
    try:
        return await change
    except UnknownKey:
        raise fail("key_not_found", "No key has this id.", param="id") from None
    except RevokedKey:
        raise fail("invalid_request", "The key was revoked; create another.", param="id", code="key_revoked") from None
    except RedisError as error:
        _log.warning("callers' keys cannot be administered: %s", error)
        raise fail("queue_unavailable", "Redis does not answer; try again in a few seconds.") from None


def _note(master: Caller, what: str, key: CallerKey) -> None:
    """Who administers is nobody's secret: it stands in the log."""
    _log.info("caller's key %s %r was %s by master key %s", key.id, key.name, what, master.fingerprint)
