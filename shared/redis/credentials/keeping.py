"""Scripts of keepers: what is to be done now, and what came of it: sign-ups, refreshes, expiry."""

from typing import Final

from shared.redis.credentials.rules import PRELUDE, SIGN_UP
from shared.redis.script import Script

ADD: Final = Script(
    PRELUDE
    + SIGN_UP
    + """
-- ARGV: clock, id, secret, origin, ms of life (0: no end), ms until it is refreshed, can it be (1, 0), token of the sign-up,
--   most minted.
-- Answers 1, or 0 if there is no room for another. Adding the same again changes nothing.
local id, origin, life = ARGV[2], ARGV[4], tonumber(ARGV[5])
advance()
if origin == 'minted' and redis.call('HGET', POOL, 'mint') == ARGV[8] then
  redis.call('ZREM', TASKS, 'mint')
  redis.call('HDEL', POOL, 'mint', 'mint failures', 'wanted')
end
local added = 1
if redis.call('HEXISTS', RECORDS, id) == 0 then
  if origin == 'minted' and minted() >= tonumber(ARGV[9]) then
    added = 0
  else
    redis.call('HSET', SECRETS, id, ARGV[3])
    if life > 0 then
      redis.call('ZADD', TASKS, now + life, 'expire ' .. id, now + ARGV[6], 'refresh ' .. id)
    end
    settle(id, {
      state = 'ready', origin = origin, generation = 1, trial = 1, strikes = 0, hits = {},
      expires = life > 0 and now + life or 0, renewable = ARGV[7] == '1' or nil,
    })
  end
end
tell()
return added
""",
    "add",
)

UPKEEP: Final = Script(
    PRELUDE
    + SIGN_UP
    + """
-- ARGV: clock, ms that the keeper may take, can it validate (1, 0), token for a sign-up, least and most minted,
--   sign-ups per hour.
-- Answers {task, id, stamp, secret}, {'mint'}, or {'wait', ms until something will be due or -1}.
local claim, validates, token = now + ARGV[2], ARGV[3] == '1', ARGV[4]
local least, most, per_hour = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
advance()
redis.call('HSET', POOL, 'most', most)

local function take(task, id, record)
  return {task, id, stamp(record), redis.call('HGET', SECRETS, id)}
end

for _, member in ipairs(redis.call('ZRANGEBYSCORE', TASKS, '-inf', now)) do
  local task, id = string.match(member, '^(%S+) ?(.*)$')
  local record = id ~= '' and read(id)
  if task == 'refresh' and record and record.renewable then
    redis.call('ZADD', TASKS, claim, member)
    record.refreshing = claim
    write(id, record)
    return take(task, id, record)
  elseif task == 'validate' and record and validates then
    redis.call('ZADD', TASKS, claim, member)
    return take(task, id, record)
  end
  redis.call('ZREM', TASKS, member)
  if task == 'test' and record then
    return take(task, id, record)
  elseif task == 'expire' then
    forget(id)
  elseif task == 'refresh' and record then  -- it cannot be: let it serve to its end, but look for another
    record.aging = true
    write(id, record)
  end
end

local due = tonumber(redis.call('ZRANGE', TASKS, 0, 0, 'WITHSCORES')[2])
if most > 0 then
  local _, fresh = minted()
  if fresh < least or (tonumber(redis.call('HGET', POOL, 'wanted')) or 0) > now then
    local at = signup_at(most, per_hour)
    if at == now then
      redis.call('ZADD', TASKS, claim, 'mint')
      redis.call('ZADD', SIGNUPS, now, token)
      redis.call('HSET', POOL, 'mint', token)
      return {'mint'}
    end
    if at and (not due or at < due) then due = at end
  end
end
return {'wait', due and due - now or -1}
""",
    "upkeep",
)

MINT_FAILED: Final = Script(
    PRELUDE
    + """
-- ARGV: clock, the sign-up's token, ms that the upstream wants us to wait or 0, a random factor near 1.
-- Answers ms until the next sign-up: 30 s, doubled with each failure in a row, at most 15 min or what the upstream says.
if redis.call('HGET', POOL, 'mint') ~= ARGV[2] then return 0 end
redis.call('HDEL', POOL, 'mint')
local failures = redis.call('HINCRBY', POOL, 'mint failures', 1)
local pause = math.min(MINUTE / 2 * 2 ^ math.min(failures - 1, 5), 15 * MINUTE) * ARGV[4]
pause = math.floor(math.max(pause, math.min(tonumber(ARGV[3]), HOUR)))
redis.call('ZADD', TASKS, now + pause, 'mint')
tell()
return pause
""",
    "mint_failed",
)

REFRESHED: Final = Script(
    PRELUDE
    + """
-- ARGV: clock, id, stamp, new secret, ms of life (0: no end), ms until the next refresh.
-- Answers 1, or 0 if somebody else was faster.
local id, life = ARGV[2], tonumber(ARGV[5])
advance()
local record = read(id)
if not record or stamp(record) ~= ARGV[3] then return 0 end
record.generation, record.trial, record.aging, record.refreshing = record.generation + 1, 1, nil, nil
record.expires = life > 0 and now + life or 0
redis.call('ZREM', TASKS, 'refresh ' .. id, 'expire ' .. id)
if life > 0 then
  redis.call('ZADD', TASKS, now + life, 'expire ' .. id, now + ARGV[6], 'refresh ' .. id)
end
redis.call('ZREM', TIMERS, 'retired ' .. id)
if record.state == 'aside' and ends('suspended ' .. id) == 0 then
  record.state = 'ready'
  redis.call('ZREM', TASKS, 'validate ' .. id)
end
redis.call('HSET', SECRETS, id, ARGV[4])
settle(id, record)
tell()
return 1
""",
    "refreshed",
)

NOT_REFRESHED: Final = Script(
    PRELUDE
    + """
-- ARGV: clock, id, stamp, ms until another try, or -1: the upstream will never refresh it.
local id = ARGV[2]
local record = read(id)
if not record or stamp(record) ~= ARGV[3] then return 0 end
record.refreshing = nil
if tonumber(ARGV[4]) < 0 then
  record.renewable = nil
  redis.call('ZADD', TASKS, now, 'refresh ' .. id)
else
  redis.call('ZADD', TASKS, now + ARGV[4], 'refresh ' .. id)
end
write(id, record)
return 1
""",
    "not_refreshed",
)
