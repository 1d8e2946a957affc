"""The other end of what the door has granted: slots are renewed while a job lives, and each job is settled exactly once.

Whoever is let in gets a *slot* (a lease of `LEASE_SECONDS`, which the job's owner renews) and a *reservation* (what was charged
on the strength of an estimate). Settling a job gives the slot back, replaces the estimate by the tokens that were used, in
the second of the window and in the day and month where they were charged, and counts the job as used.

    settled by              when                                           outcome
    its owner               every end that it sees                         done, failed, cancelled
    its worker              it stops because the owner is gone             cancelled
    anybody at all          the slot has expired: both are gone            unsettled: the estimate stays

Several of them may settle one job, and a settlement whose reply was lost is sent again. The first leaves a *mark* with the
job's name, in the same step as everything else that it does, and later ones only take away what is left. A mark lives in the
same memory as what it stands for: a Redis that comes back empty has forgotten both, and one more settlement is right again.

Leases end by Redis' clock, which may jump or stand still with Redis, and then all of them would have ended at once. So each
renewal leaves its time as a *pulse*. Where there was none for `PULSE_SECONDS`, nobody was there or time has jumped: for as long
again no slot is given up, which gives everybody who lives the time to renew his.

SETTLE and RENEW take away before they write, so a Redis without free memory lets them pass.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from shared.redis import keys
from shared.redis.script import Script
from shared.redis.submission.window import WINDOW
from shared.redis.usage import USAGE, row_name

LEASE_SECONDS: Final = 10.0
RENEW_SECONDS: Final = 3.0
PULSE_SECONDS: Final = 5.0
"""Longer than it takes everybody to renew; renewals, also empty ones, come every second."""
REPEAT_SECONDS: Final = 120
"""How long the mark of an owner's settlement stays: as long as the same could come again."""
OVERTAKEN_SECONDS: Final = 3600
"""How long the mark of anybody else's stays: an owner that was only asleep may still settle when its job ends."""
MOST_EXPIRED: Final = 1000
"""Slots that one script takes away at most."""

Outcome = Literal["done", "failed", "cancelled"]


class Settlement(msgspec.Struct, array_like=True, frozen=True):
    """How a job ended. `job`: hex digits of its id. `row`: of `usage.row_name`.

    `estimated`: nobody counted the tokens. `certain`: the job was let in as far as is known; otherwise it counts only if there
    is a reservation. `mark_seconds`: how long later settlements of the same job are recognised.
    """

    job: str
    caller: str
    outcome: Outcome
    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    row: str
    certain: bool = True
    mark_seconds: int = REPEAT_SECONDS


SETTLING: Final = (
    WINDOW
    + USAGE
    + f"""
local SLOTS, PULSE = '{keys.SLOTS.decode()}', '{keys.SLOTS_PULSE.decode()}'
local SETTLED, CALLER = '{keys.SETTLED.decode()}', '{keys.CALLER.decode()}'
local LEASE, PULSE_MS = {round(LEASE_SECONDS * 1000)}, {round(PULSE_SECONDS * 1000)}
local MOST_EXPIRED, OVERTAKEN = {MOST_EXPIRED}, {OVERTAKEN_SECONDS}
"""
    + """
local function of_caller(caller, part) return CALLER .. '{' .. caller .. '}:' .. part end

local function slot_of(job, caller) return job .. ' ' .. caller end

local function correct(caller, reservation, used, now)  -- replaces what was charged by what was used
  local more = used - reservation.charged
  if more == 0 then return end
  window_correct(of_caller(caller, 'window'), reservation.second, more, now)
  local totals = of_caller(caller, 'tokens')
  for _, span in ipairs({reservation.day, string.sub(reservation.day, 1, 7)}) do
    if redis.call('HEXISTS', totals, span) == 1 then redis.call('HINCRBY', totals, span, more) end
  end
end

local function settle(job, caller, end_, now)  -- whether this was the settlement that counts
  redis.call('ZREM', SLOTS, slot_of(job, caller))
  local reserved = of_caller(caller, 'reserved')
  local packed = redis.call('HGET', reserved, job)
  redis.call('HDEL', reserved, job)
  local reservation = packed and packed ~= '' and cmsgpack.unpack(packed) or nil
  local first = redis.call('SET', SETTLED .. job, '', 'NX', 'EX', end_.mark_seconds) and true or false
  local prompt, completion = end_.prompt, end_.completion
  if not first then
    prompt, completion = 0, 0
  elseif end_.outcome == 'unsettled' and reservation then
    prompt, completion = reservation.prompt, reservation.completion
  end
  if reservation and reservation.charged then correct(caller, reservation, prompt + completion, now) end
  local row = end_.row or reservation and reservation.row
  if not first or not row or not (reservation or end_.certain) then return false end
  count_usage(reservation and reservation.day or day_of(now), row, end_.outcome, prompt, completion, end_.estimated)
  return true
end

local function sweep(now)  -- settles the jobs of which nobody has spoken any more
  local pulse = redis.call('HMGET', PULSE, 'at', 'quiet')
  if not pulse[1] or now - pulse[1] > PULSE_MS or now < tonumber(pulse[2]) then return 0 end
  local expired = redis.call('ZRANGEBYSCORE', SLOTS, '-inf', now, 'LIMIT', 0, MOST_EXPIRED)
  for _, slot in ipairs(expired) do
    local job, caller = string.match(slot, '^(%S+) (.*)$')
    settle(job, caller,
           {outcome = 'unsettled', prompt = 0, completion = 0, estimated = true, mark_seconds = OVERTAKEN}, now)
  end
  return #expired
end
"""
)

_CLOCK: Final = """
local time = redis.call('TIME')
local now = tonumber(ARGV[2]) or time[1] * 1000 + time[2] / 1000
"""

SETTLE: Final = Script(
    SETTLING
    + _CLOCK
    + """
-- ARGV: `Settlement`s in msgpack, a test's own time.  Answers how many of them counted.
local count = 0
for _, item in ipairs(cmsgpack.unpack(ARGV[1])) do
  local job, caller, outcome, prompt, completion, estimated, row, certain, mark_seconds = unpack(item, 1, 9)
  if settle(job, caller, {outcome = outcome, prompt = prompt, completion = completion, estimated = estimated, row = row,
                          certain = certain, mark_seconds = mark_seconds}, now) then
    count = count + 1
  end
end
return count
""",
    "settle",
)

RENEW: Final = Script(
    SETTLING
    + _CLOCK
    + """
-- ARGV: [job, caller] of each slot in msgpack, a test's own time.  Answers how many slots of others had expired.
-- A Redis that came back empty learns here again who holds a slot; of what was reserved for them nothing is known any more.
redis.call('ZREM', SLOTS, '')
local pulse = redis.call('HMGET', PULSE, 'at', 'quiet')
local quiet = tonumber(pulse[2]) or 0
if not pulse[1] or math.abs(now - pulse[1]) > PULSE_MS then quiet = now + PULSE_MS end
redis.call('HSET', PULSE, 'at', now, 'quiet', math.min(quiet, now + PULSE_MS))
redis.call('EXPIRE', PULSE, 3600)
local too_late = string.format('(%d', now + LEASE + 1)
for _, slot in ipairs(redis.call('ZRANGEBYSCORE', SLOTS, too_late, '+inf')) do  -- the clock was set back
  redis.call('ZADD', SLOTS, now + LEASE, slot)
end
for _, item in ipairs(cmsgpack.unpack(ARGV[1])) do
  redis.call('ZADD', SLOTS, now + LEASE, slot_of(item[1], item[2]))
  redis.call('HSETNX', of_caller(item[2], 'reserved'), item[1], '')
end
return sweep(now)
""",
    "renew",
)

_encode = msgspec.msgpack.Encoder().encode

Call = tuple[Script, Sequence[bytes], Sequence[bytes]]
"""A script, its keys and its arguments, for `Link.post_script` and `Link.script`."""


def settle(ends: Sequence[Settlement], now: float | None = None) -> Call:
    """Settle jobs; the reply is how many were not settled before. `now`: a test's own milliseconds."""
    return SETTLE, [keys.SLOTS], [_encode(ends), b"" if now is None else b"%f" % now]


def renew(held: Sequence[tuple[str, str]], now: float | None = None) -> Call:
    """Renew the slots of jobs (hex digits of their ids) with their callers, and settle what nobody renews any more."""
    return RENEW, [keys.SLOTS], [_encode(held), b"" if now is None else b"%f" % now]


__all__ = ["RENEW", "SETTLE", "SETTLING", "Settlement", "renew", "row_name", "settle"]
