"""SUBMIT, the one script at the door: limits_check → queue_check → limits_charge → enqueue, all or nothing.

A script cannot include another, so its text is put together here from the parts. What a submission says travels as one
msgpack map, so that fields have names; the sealed job, which may be large, travels beside it. A refused job leaves no trace.

    KEYS     the seven of the provider's queue (`shared.redis.submission.queue`), CIRCUITS, then LIMIT_KEYS
    ARGV     `Ask` in msgpack, the sealed job
    answers  `Queued` or `Refusal` in msgpack

Times are milliseconds of Redis' clock (`now`) in Lua. Runs on Redis 6.2 and later.
"""

from typing import Final

import msgspec

from shared.redis import keys
from shared.redis.circuit import CIRCUIT
from shared.redis.script import Script, ScriptCall
from shared.redis.submission.limits import LIMITS, Left, LimitName, Terms, limits_keys
from shared.redis.submission.queue import PRELUDE, QUEUE


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a submission says of itself. Lua sees it as `ask`, under the same names.

    `job`: hex digits of the job's id; `name`: the same with the attempt. `again`: another attempt of a job that was let in and
    charged before. `returns`: the same, and this very queue let it in: it may not be refused for want of room. `ahead`: it has
    waited its turn already. `whose`: between whom the queue is fair. `low`: waits behind everybody's normal jobs.
    `patience_ms`: how long the caller would wait in the queue. `most_waiting`: jobs that may wait for the provider.
    `terms`: of the caller's key, if it has any. `row`: under which the job is counted, see `shared.redis.usage`.
    `prompt_tokens`: estimated. `estimated_tokens`: prompt and answer together, of which `at_least_tokens` must be free.
    `now_ms`: a test's own clock.
    """

    job: str
    name: str
    caller: str
    whose: str
    model: str
    again: bool = False
    returns: bool = False
    ahead: bool = False
    low: bool = False
    patience_ms: float
    most_waiting: int
    terms: Terms | None = None
    row: str = '["","",""]'  # Redis' msgpack knows no bytes
    prompt_tokens: int = 0
    estimated_tokens: int = 0
    at_least_tokens: int = 0
    now_ms: float | None = None


class Queued(msgspec.Struct, frozen=True, tag="queued", tag_field="is"):
    """The job waits. `limits`: what is left to the caller, for the headers."""

    limits: Left | None = None


class Refusal(msgspec.Struct, frozen=True, tag="refused", tag_field="is"):
    """The job may not wait, and nothing has changed. `kind`: of `shared.errors`. `waiting`: jobs that wait already, `own`: of
    the caller's, if those are the trouble.

    `limit`: which of the caller's limits is in the way, its `size`, what is `used` of it and what was `wanted`.
    """

    kind: str
    retry_after_seconds: float | None = None
    waiting: int = 0
    own: int = 0
    limit: LimitName | None = None
    size: int = 0
    used: int = 0
    wanted: int = 0
    limits: Left | None = None


SUBMIT: Final = Script(
    PRELUDE
    + """
local CIRCUITS = KEYS[8]
local LIMIT_KEYS = {unpack(KEYS, 9)}
local ask = cmsgpack.unpack(ARGV[1])
local now = clock(ask.now_ms)
"""
    + LIMITS
    + CIRCUIT
    + QUEUE
    + """
local refusal, limits
if not ask.again then refusal, limits = limits_check(ask, now) end
refusal = refusal or circuit_check(ask, now) or queue_check(ask, now, #ARGV[2])
if refusal then
  refusal.is, refusal.limits = 'refused', limits
  return cmsgpack.pack(refusal)
end
if not ask.again then limits = limits_charge(ask, now) end
enqueue(ask, now, ARGV[2])
return cmsgpack.pack({is = 'queued', limits = limits})
""",
    "submit",
)

_encode = msgspec.msgpack.Encoder().encode
_answer: "msgspec.msgpack.Decoder[Queued | Refusal]" = msgspec.msgpack.Decoder(Queued | Refusal)


def submission(provider: str, ask: Ask, sealed: bytes) -> ScriptCall:
    """Ask whether the job may wait for this provider."""
    return SUBMIT, [*keys.queue(provider), keys.circuits(provider)[0], *limits_keys()], [_encode(ask), sealed]


def answer_to(reply: bytes) -> Queued | Refusal:
    """What the script says. Raises `msgspec.DecodeError`."""
    return _answer.decode(reply)
