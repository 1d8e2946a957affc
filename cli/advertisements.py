"""Who is alive, read from Redis with redis-py: an independent client, so that it also tells when our own link lies."""

import contextlib
from typing import Any, TypeVar

import msgspec

from shared.redis import keys
from shared.schema.advertisement import FrontendAdvertisement, WorkerAdvertisement

_Advertisement = TypeVar("_Advertisement", FrontendAdvertisement, WorkerAdvertisement)


def live_frontends(server: Any) -> list[FrontendAdvertisement]:
    """What all live frontends say of themselves; `server` is a `redis.Redis`."""
    return _advertisements(server, "frontend", FrontendAdvertisement)


def live_workers(server: Any) -> list[WorkerAdvertisement]:
    """What all live workers say of themselves."""
    return _advertisements(server, "worker", WorkerAdvertisement)


def _advertisements(server: Any, kind: str, shape: type[_Advertisement]) -> list[_Advertisement]:
    """Those that speak another version's language are left out."""
    prefix = kind.encode() + b":"
    ids = sorted(member.removeprefix(prefix) for member in server.smembers(keys.ALIVE) if member.startswith(prefix))
    found = []
    for text in server.mget([keys.alive(kind, one.decode()) for one in ids]) if ids else ():
        with contextlib.suppress(msgspec.DecodeError):
            found.append(msgspec.json.decode(text or b"", type=shape))
    return found
