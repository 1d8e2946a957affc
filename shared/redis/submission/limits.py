"""The door's part that knows a caller's limits. Lua; `shared.redis.submission.script` composes it.

Checked in this order, and nothing is charged before all of it and the queue have said yes: the key has not changed since the
frontend read its record → a slot is free → requests of the last minute → tokens of the last minute → tokens of the day and the
month. `limits_check` changes nothing (except that it settles jobs whose processes are gone); `limits_charge` runs once it is
certain that the job is let in. Neither runs for another attempt of a job that was charged before (`ask.again`), and a job
that has a reservation is let in without another charge: its owner never heard that it was let in.

Tokens are reserved: the prompt, which is estimated, and the answer, as long as it may become. A caller who does not say how
long reserves what is usual, or what is left if that is less (`at_least_tokens` to `estimated_tokens`).
"""

from typing import Final, Literal

import msgspec

from shared.redis import keys
from shared.redis.link import Link
from shared.redis.script import Script
from shared.redis.submission.settlement import SETTLING
from shared.schema.caller import CallerKey

LimitName = Literal["requests", "tokens", "concurrent", "daily", "monthly"]


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a caller's key allows, as the door checks it. Absent: no limit. `revision` of the record that this was read from."""

    revision: int
    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None
    daily: int | None = None
    monthly: int | None = None

    @property
    def per_minute(self) -> bool:
        """Whether answers tell what is left."""
        return self.requests is not None or self.tokens is not None

    @property
    def reserve(self) -> bool:
        """Whether a job holds something that its settlement gives back: its slot, tokens that it did not need."""
        return any(limit is not None for limit in (self.tokens, self.concurrent, self.daily, self.monthly))

    @classmethod
    def of(cls, key: CallerKey) -> "Terms":
        """The terms of a record."""
        return cls(
            revision=key.revision,
            requests=key.requests_per_minute,
            tokens=key.tokens_per_minute,
            concurrent=key.concurrent_requests,
            daily=key.daily_tokens,
            monthly=key.monthly_tokens,
        )


class Left(msgspec.Struct, frozen=True):
    """What is left to a caller after this request, for the headers. `…_reset_ms`: until all is free again. None: no limit."""

    requests: int | None = None
    tokens: int | None = None
    requests_left: int = 0
    tokens_left: int = 0
    requests_reset_ms: float = 0
    tokens_reset_ms: float = 0


LIMITS: Final = (
    SETTLING
    + """
local REVISIONS = LIMIT_KEYS[2]
local door = {}  -- what limits_check has found out for limits_charge

local function spans(now)  -- the day and the month
  door.day = door.day or day_of(now)
  return door.day, string.sub(door.day, 1, 7)
end

local function until_next_month(now)
  local _, month = spans(now)
  local midnight = now - now % DAY
  repeat midnight = midnight + DAY until string.sub(day_of(midnight), 1, 7) ~= month
  return midnight - now
end

local function what_is_left(terms, window, now)
  if not (terms.requests or terms.tokens) then return nil end
  local reset = window_reset(window, now)
  local left = {requests = terms.requests, tokens = terms.tokens}
  if terms.requests then
    left.requests_left = math.max(0, terms.requests - window.requests)
    left.requests_reset_ms = reset
  end
  if terms.tokens then
    left.tokens_left = math.max(0, math.min(terms.tokens, terms.tokens - window.tokens))
    left.tokens_reset_ms = window.tokens > 0 and reset or 0
  end
  return left
end

local function over(kind, limit, size, used, wanted, wait_ms)
  return {kind = kind, limit = limit, size = size, used = used, wanted = wanted,
          retry_after_seconds = wait_ms and wait_ms / 1000 or nil}
end

local function over_the_minute(ask, terms, now)  -- the wait is the longer one if both limits are in the way
  local window, key, least = door.window, of_caller(ask.caller, 'window'), ask.at_least_tokens
  if terms.tokens and least > terms.tokens then
    return over('request_over_limit', 'tokens', terms.tokens, window.tokens, least)
  end
  local refusal
  if terms.tokens and window.tokens + least > terms.tokens then
    local wait = window_wait(key, window, now, window.tokens + least - terms.tokens, 'tokens')
    refusal = over('rate_limit', 'tokens', terms.tokens, window.tokens, least, wait)
  end
  if terms.requests and window.requests + 1 > terms.requests then
    local wait = window_wait(key, window, now, window.requests + 1 - terms.requests, 'requests')
    wait = math.max(wait, refusal and refusal.retry_after_seconds * 1000 or 0)
    refusal = over('rate_limit', 'requests', terms.requests, window.requests, 1, wait)
  end
  return refusal
end

local function over_the_quota(ask, terms, now)
  if not (terms.daily or terms.monthly) then return nil end
  local day, month = spans(now)
  local used = redis.call('HMGET', of_caller(ask.caller, 'tokens'), day, month)
  door.daily, door.monthly = tonumber(used[1]) or 0, tonumber(used[2]) or 0
  local least = ask.at_least_tokens
  if terms.daily and door.daily + least > terms.daily then
    return over('insufficient_quota', 'daily', terms.daily, door.daily, least, DAY - now % DAY)
  end
  if terms.monthly and door.monthly + least > terms.monthly then
    return over('insufficient_quota', 'monthly', terms.monthly, door.monthly, least, until_next_month(now))
  end
end

local function limits_check(ask, now)  -- a refusal or nil, and what is left, for the headers
  redis.call('ZADD', SLOTS, 'XX', 0, '')  -- changes nothing, but a Redis whose memory is full refuses it, and so the whole job
  sweep(now)
  local terms, reserved = ask.terms, of_caller(ask.caller, 'reserved')
  door.charged_before = redis.call('HEXISTS', reserved, ask.job) == 1
  if not terms then return nil, nil end
  door.window = window_at(of_caller(ask.caller, 'window'), now)
  local left = what_is_left(terms, door.window, now)
  if door.charged_before then return nil, left end
  if redis.call('HGET', REVISIONS, ask.caller) ~= tostring(terms.revision) then
    return {kind = 'outdated_key'}, nil
  end
  local held = terms.concurrent and redis.call('HLEN', reserved)
  if held and held >= terms.concurrent then
    return over('concurrency_limit', 'concurrent', terms.concurrent, held, 1, 500), left
  end
  return over_the_minute(ask, terms, now) or over_the_quota(ask, terms, now), left
end

local function tokens_to_charge(ask, terms)  -- the usual, but at most what is left
  local most = ask.estimated_tokens
  if terms.tokens then most = math.min(most, terms.tokens - door.window.tokens) end
  if terms.daily then most = math.min(most, terms.daily - door.daily) end
  if terms.monthly then most = math.min(most, terms.monthly - door.monthly) end
  return math.max(most, ask.at_least_tokens)
end

local function charge_totals(caller, now, tokens)
  local totals, day, month = of_caller(caller, 'tokens'), spans(now)
  local today = redis.call('HINCRBY', totals, day, tokens)
  redis.call('HINCRBY', totals, month, tokens)
  if today == tokens then  -- the first of the day
    for _, span in ipairs(redis.call('HKEYS', totals)) do
      if span ~= day and span ~= month then redis.call('HDEL', totals, span) end
    end
    redis.call('EXPIRE', totals, 32 * DAY / 1000)
  end
end

local function limits_charge(ask, now)  -- what is left now, for the headers
  local terms, left, charged = ask.terms, nil, nil
  redis.call('ZADD', SLOTS, now + LEASE, slot_of(ask.job, ask.caller))
  if door.charged_before then
    return terms and what_is_left(terms, door.window, now)
  end
  if terms then
    charged = tokens_to_charge(ask, terms)
    window_add(of_caller(ask.caller, 'window'), door.window, now, charged, 1)
    charge_totals(ask.caller, now, charged)
    left = what_is_left(terms, door.window, now)
  end
  local prompt = math.min(ask.prompt_tokens, charged or ask.prompt_tokens)
  redis.call('HSET', of_caller(ask.caller, 'reserved'), ask.job, cmsgpack.pack({
    second = math.floor(now / 1000), day = spans(now), charged = charged, row = ask.row,
    prompt = prompt, completion = (charged or ask.estimated_tokens) - prompt,
  }))
  return left
end
"""
)


PEEK: Final = Script(
    """
local LIMIT_KEYS = KEYS
"""
    + LIMITS
    + """
-- ARGV: [terms, caller] in msgpack.  Answers what is left, in msgpack; changes nothing.
local terms, caller = unpack(cmsgpack.unpack(ARGV[1]))
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
return cmsgpack.pack(what_is_left(terms, window_at(of_caller(caller, 'window'), now), now))
""",
    "peek",
)

_encode = msgspec.msgpack.Encoder().encode
_left = msgspec.msgpack.Decoder(Left | None)


async def what_is_left(link: Link, terms: Terms, caller: str) -> Left | None:
    """What is left to a caller now, for an answer that never came to the door. Raises `RedisError`."""
    left: Left | None = _left.decode(await link.script(PEEK, limits_keys(), [_encode((terms, caller))]))
    return left


def limits_keys() -> list[bytes]:
    """The keys that the fragment reads and writes in any case: LIMIT_KEYS in the script, in this order.

    Those of callers are named by the script itself, since it also settles jobs of callers that nobody knows beforehand.
    """
    return [keys.SLOTS, keys.CALLER_REVISIONS]
