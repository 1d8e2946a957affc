"""Answers that are kept for whoever asks the very same again: sealed, each with its end, all together within a bound.

They lie in one hash, since whatever is evicted to make room must be known to the script that evicts.
"""

from typing import Final

import msgspec

from shared.redis import keys
from shared.redis.link import Link
from shared.redis.script import Script
from shared.schema.job import Outcome
from shared.sealing import Seal, SealBroken

_KEEP: Final = Script(
    """
    -- KEYS answers, ends, bytes.  ARGV: name, sealed answer, life in ms, most bytes of all answers.
    -- Expired answers go first, then those that would expire next, until the new one fits.
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local held = tonumber(redis.call('GET', KEYS[3]) or '0')
    local function drop(name)
      held = held - redis.call('HSTRLEN', KEYS[1], name)
      redis.call('HDEL', KEYS[1], name)
      redis.call('ZREM', KEYS[2], name)
    end
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do drop(name) end
    drop(ARGV[1])
    while held + #ARGV[2] > tonumber(ARGV[4]) do
      local first = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
      if not first then return 0 end
      drop(first)
    end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
    redis.call('SET', KEYS[3], held + #ARGV[2])
    local life = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[3]))
    for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, life) end
    return 1
    """,
    "keep answer",
)

_FIND: Final = Script(
    """
    -- KEYS answers, ends.  ARGV: name.  The sealed answer and the ms that it has left, or nothing.
    local time = redis.call('TIME')
    local left = (tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or '0')
      - time[1] * 1000 - math.floor(time[2] / 1000))
    if left <= 0 then return false end
    return {redis.call('HGET', KEYS[1], ARGV[1]), left}
    """,
    "find answer",
)


class KeptAnswer(msgspec.Struct, array_like=True, frozen=True):
    """One complete answer. `request`: digest of what was asked, of which the name is only a part. `chunks`: what the caller
    was sent, the JSON of each chunk or of the one body. `life_seconds`: for how long it was kept at first."""

    request: bytes
    provider: str
    chunks: list[bytes]
    outcome: Outcome
    life_seconds: float


_encode = msgspec.msgpack.Encoder().encode
_kept = msgspec.msgpack.Decoder(KeptAnswer)


class Answers:
    """The kept answers of all callers; who may see which is in their names. `most_bytes`: of all of them, sealed."""

    def __init__(self, link: Link, seal: Seal, most_bytes: int) -> None:
        self._link = link
        self._seal = seal
        self._most_bytes = most_bytes

    def keep(self, name: str, answer: KeptAnswer) -> None:
        """Without waiting; an answer that Redis does not take is simply not kept."""
        sealed = self._seal.seal(_encode(answer), _context(name))
        life = str(max(1, int(answer.life_seconds * 1000)))
        self._link.post_script(_KEEP, keys.ANSWERS, [name, sealed, life, str(self._most_bytes)])

    async def find(self, name: str, request: bytes) -> tuple[KeptAnswer, float] | None:
        """The answer to exactly this request and its age in seconds. Raises `RedisError`."""
        reply = await self._link.script(_FIND, keys.ANSWERS[:2], [name])
        if not isinstance(reply, list) or reply[0] is None:
            return None
        try:
            answer = _kept.decode(self._seal.open(reply[0], _context(name)))
        except (SealBroken, msgspec.DecodeError):
            return None  # sealed with a key that has left the ring, or kept by another version
        if answer.request != request:
            return None
        return answer, max(0.0, answer.life_seconds - reply[1] / 1000)


def _context(name: str) -> bytes:
    return keys.ANSWERS[0] + b":" + name.encode()
