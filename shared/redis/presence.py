"""Finding each other: every process advertises itself under a key that expires, and reads who else is alive.

The set `sluice:alive` only says where to look; a member counts while its key exists. So no clock is compared, a process that
was killed is gone when its key expires, and one that leaves in order is gone at once.
"""

import logging
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from shared.redis import keys
from shared.redis.failures import RedisError, RefusalKind, Refused
from shared.redis.link import Link

_log = logging.getLogger(__name__)

LEAVE_SECONDS: Final = 0.5


async def advertise(link: Link, kind: str, process_id: str, advertisement: Callable[[], msgspec.Struct]) -> None:
    """Advertise every second until cancelled, then take the advertisement away. `advertisement` is asked each time."""
    key = keys.alive(kind, process_id)
    member = b"%b:%b" % (kind.encode(), process_id.encode())
    try:
        while True:
            publish(link, key, member, advertisement())
            await trio.sleep(keys.REFRESH_SECONDS)
    finally:
        with trio.move_on_after(LEAVE_SECONDS, shield=True):
            try:
                await link.many([(b"DEL", key), (b"SREM", keys.ALIVE, member)])
            except RedisError:
                _log.debug("the advertisement is left to expire")


def publish(link: Link, key: bytes, member: bytes, advertisement: msgspec.Struct) -> None:
    """Set the advertisement now, or keep the one that stands if Redis has no room; the next second brings another.

    A full Redis refuses SET and takes EXPIRE: it must not look as if everybody had died.
    """

    def answered(reply: object) -> None:
        if isinstance(reply, Refused) and reply.kind is RefusalKind.CAPACITY:
            link.post(b"EXPIRE", key, str(keys.ALIVE_SECONDS))

    link.post(b"SET", key, msgspec.json.encode(advertisement), b"EX", str(keys.ALIVE_SECONDS), on_reply=answered)
    link.post(b"SADD", keys.ALIVE, member)


async def alive(link: Link, kind: str) -> list[bytes]:
    """The advertisements of all live processes of a kind, as JSON. Forgets the members whose key is gone."""
    prefix = kind.encode() + b":"
    members = [member for member in await link.call(b"SMEMBERS", keys.ALIVE) if member.startswith(prefix)]
    if not members:
        return []
    values = await link.call(b"MGET", *(b"%b:%b" % (keys.ALIVE, member) for member in members))
    gone = [member for member, value in zip(members, values, strict=True) if value is None]
    if gone:
        link.post(b"SREM", keys.ALIVE, *gone)
    return [value for value in values if value is not None]
