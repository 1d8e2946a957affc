"""Jobs that took worker after worker along: what is kept of them, so that somebody can find out why.

Only what tells one job from another, never a word of the request or of the answer: the request id leads to the log.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from shared.redis import keys
from shared.redis.link import Link

MOST: Final = 100
KEPT_SECONDS: Final = 30 * 24 * 3600


class DeadJob(msgspec.Struct, frozen=True):
    """`time`: Unix seconds. `workers`: those that died with it, in order. `body_bytes`: how long the request's body was."""

    time: float
    request_id: str
    provider: str
    model: str
    endpoint: str
    caller: str
    stream: bool
    body_bytes: int
    workers: list[str]


_decode = msgspec.json.Decoder(DeadJob).decode


def bury(link: Link, job: DeadJob) -> None:
    """Note the job as the latest of at most `MOST`; whoever looks has a month. Synchronous; without Redis nothing is noted."""
    link.post_many(
        [
            (b"LPUSH", keys.DEAD, msgspec.json.encode(job)),
            (b"LTRIM", keys.DEAD, b"0", str(MOST - 1)),
            (b"EXPIRE", keys.DEAD, str(KEPT_SECONDS)),
        ]
    )


def read(entries: Sequence[bytes]) -> list[DeadJob]:
    """What `LRANGE` brought, the latest first; entries of other versions are left out."""
    found = []
    for entry in entries:
        try:
            found.append(_decode(entry))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found
