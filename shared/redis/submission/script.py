"""SUBMIT, the one script at the door: limits_check → queue_check → limits_charge → enqueue, all or nothing.

A script cannot include another, so its text is put together here from the parts. What a submission says travels as one
msgpack map, so that fields have names; the sealed job, which may be large, travels beside it. A refused job leaves no trace.

    KEYS     JOBS (the provider's stream), then LIMIT_KEYS
    ARGV     `Ask` in msgpack, the sealed job
    answers  `Queued` or `Refusal` in msgpack

Times are milliseconds of Redis' clock (`now`) in Lua. Runs on Redis 6.2 and later.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from shared.redis import keys
from shared.redis.script import Script
from shared.redis.submission.limits import LIMITS, limits_keys
from shared.redis.submission.queue import QUEUE


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a submission says of itself. Lua sees it as `ask`, under the same names.

    `job`: hex digits of the job's id. `again`: another attempt of a job that was let in and charged before.
    `low`: waits behind everybody's normal jobs. `patience_ms`: how long the caller would wait in the queue.
    `estimated_tokens`: prompt and answer together. `most_waiting`: jobs that may wait for the provider.
    """

    job: str
    attempt: int
    caller: str
    model: str
    again: bool
    low: bool
    patience_ms: float
    estimated_tokens: int
    most_waiting: int


class Queued(msgspec.Struct, frozen=True, tag="queued", tag_field="is"):
    """The job waits. `entry`: where in the provider's stream. `limits`: what is left to the caller, for the headers."""

    entry: str
    limits: dict[str, float] | None = None


class Refusal(msgspec.Struct, frozen=True, tag="refused", tag_field="is"):
    """The job may not wait, and nothing has changed. `kind`: of `shared.errors`. `waiting`: jobs that wait already."""

    kind: str
    retry_after_seconds: float | None = None
    waiting: int = 0
    limits: dict[str, float] | None = None


SUBMIT: Final = Script(
    """
local JOBS = KEYS[1]
local LIMIT_KEYS = {unpack(KEYS, 2)}
local ask = cmsgpack.unpack(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
"""
    + LIMITS
    + QUEUE
    + """
local refusal, limits
if not ask.again then refusal, limits = limits_check(ask, now) end
refusal = refusal or queue_check(ask, now)
if refusal then
  refusal.is, refusal.limits = 'refused', limits
  return cmsgpack.pack(refusal)
end
if not ask.again then limits = limits_charge(ask, now) end
return cmsgpack.pack({is = 'queued', entry = enqueue(ask, now, ARGV[2]), limits = limits})
""",
    "submit",
)

_encode = msgspec.msgpack.Encoder().encode
_answer: "msgspec.msgpack.Decoder[Queued | Refusal]" = msgspec.msgpack.Decoder(Queued | Refusal)


def submission(provider: str, ask: Ask, sealed: bytes) -> tuple[Script, Sequence[bytes], Sequence[bytes]]:
    """The script, its keys and its arguments, for `Link.post_script` and `Link.script`."""
    return SUBMIT, [keys.jobs(provider), *limits_keys(ask.caller)], [_encode(ask), sealed]


def answer_to(reply: bytes) -> Queued | Refusal:
    """What the script says. Raises `msgspec.DecodeError`."""
    return _answer.decode(reply)
