"""Scripts of those who use credentials: lease, renew, give back; and of workers that bring some in their settings."""

from typing import Final

from shared.redis.credentials.rules import JUDGE, PRELUDE, SIGN_UP
from shared.redis.script import Script

LEASE: Final = Script(
    PRELUDE
    + SIGN_UP
    + """
-- ARGV: clock, name, model, life, calls per credential (0: any number), how long the caller would wait, most minted,
--   sign-ups per hour, then the credentials that the caller has tried.
-- Answers {id, stamp, secret}; or {can it change any moment, ms until it will for sure or -1, credentials there are}.
local name, model = ARGV[2], ARGV[3]
local life, calls, patience = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local most, per_hour = tonumber(ARGV[7]), tonumber(ARGV[8])
local tried = {}
for i = 9, #ARGV do tried[ARGV[i]] = true end
local full, coming, hope, last_resort = false, false, nil, nil

local function hope_for(at)
  if at > now and (not hope or at < hope) then hope = at end
end

local function fits(id, load)
  if tried[id] then return end
  local resting = math.max(ends('rest ' .. id .. ' '), ends('rest ' .. id .. ' ' .. model))
  if resting > 0 then return hope_for(resting) end
  local record = read(id)
  if record.expires > 0 and record.expires <= now then return end
  if record.state == 'probation' then
    if load > 0 then
      coming = true
      return
    elseif next(tried) then  -- this caller was refused before: let others try what may fail
      last_resort = last_resort or {id, record}
      return
    end
  elseif calls > 0 and load >= calls then
    full, coming = true, true
    return
  end
  return record
end

local function choose()
  local page, first = nil, 0
  repeat
    page = redis.call('ZRANGE', ORDER, first, first + 15, 'WITHSCORES')
    for i = 1, #page, 2 do
      local record = fits(page[i], math.floor(page[i + 1] / SLOT))
      if record then return page[i], record end
      if full then break end  -- those that follow are no less busy
    end
    first = first + 16
  until full or #page < 32
  if last_resort then return last_resort[1], last_resort[2] end
end

advance()
local id, record = choose()
if id then
  occupy(id, name, life)
  return {id, stamp(record), redis.call('HGET', SECRETS, id)}
end
if most > 0 then
  local at = signup_at(most, per_hour)
  if signup_under_way() or at == now then
    coming = true
  elseif at then
    hope_for(at)
  end
end
for _, other in ipairs(redis.call('HKEYS', RECORDS)) do
  if not tried[other] then hope_for(aside_until(other)) end
end
if coming then redis.call('HSET', POOL, 'wanted', now + patience) end
return {coming and 1 or 0, hope and hope - now or -1, redis.call('HLEN', RECORDS)}
""",
    "lease",
)

RELEASE: Final = Script(
    PRELUDE
    + JUDGE
    + """
-- ARGV: clock, id, name (empty: there was no lease), stamp, verdict, model, ms to wait or -1, what a test found.
local id, found = ARGV[2], ARGV[8]
if redis.call('ZREM', TIMERS, 'lease ' .. id .. ' ' .. ARGV[3]) == 1 then vacate(id) end
advance()
local record = read(id)
if record and stamp(record) == ARGV[4] then
  if found ~= '' then
    record.tested_at, record.tested = now, found
    write(id, record)
  end
  judge(id, record, ARGV[5], ARGV[6], tonumber(ARGV[7]))
end
if found ~= '' or (tonumber(redis.call('HGET', POOL, 'wanted')) or 0) > now then tell() end
return 1
""",
    "release",
)

RENEW: Final = Script(
    PRELUDE
    + """
-- ARGV: clock, life, calls per credential, number of leases, id and name of each, then the ids that are vouched for.
-- Answers {names of the leases that are lost, ids that are not known, credentials that can be leased, all there are}.
-- A lease that ran out (Redis has forgotten it, or was away) is taken again while there is room.
redis.call('ZREM', TIMERS, '')
local life, calls, last = tonumber(ARGV[2]), tonumber(ARGV[3]), 4 + 2 * ARGV[4]
advance()
local lost, unknown = {}, {}
for i = 5, last, 2 do
  local id, name = ARGV[i], ARGV[i + 1]
  if redis.call('ZSCORE', TIMERS, 'lease ' .. id .. ' ' .. name) then
    redis.call('ZADD', TIMERS, 'GT', now + life, 'lease ' .. id .. ' ' .. name)
  elseif calls == 0 or load_of(id) < calls then
    occupy(id, name, life)
  else
    lost[#lost + 1] = name
  end
end
for i = last + 1, #ARGV do
  if redis.call('HEXISTS', RECORDS, ARGV[i]) == 1 then
    redis.call('ZADD', TIMERS, 'GT', now + life, 'vouched ' .. ARGV[i])
  else
    unknown[#unknown + 1] = ARGV[i]
  end
end
return {lost, unknown, redis.call('ZCARD', ORDER), redis.call('HLEN', RECORDS)}
""",
    "renew",
)

LEAVE: Final = Script(
    PRELUDE
    + """
-- ARGV: clock, beginning of lease names. Gives back all leases whose names begin so; answers how many.
local count = 0
for _, member in ipairs(redis.call('ZRANGE', TIMERS, 0, -1)) do
  local id, name = string.match(member, '^lease (%S+) (%S+)$')
  if id and string.sub(name, 1, #ARGV[2]) == ARGV[2] then
    redis.call('ZREM', TIMERS, member)
    vacate(id)
    count = count + 1
  end
end
if count > 0 then tell() end
return count
""",
    "leave",
)

REGISTER: Final = Script(
    PRELUDE
    + """
-- ARGV: clock, life, then id and secret of each credential of a worker's settings. Known ones are vouched for.
advance()
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  redis.call('ZADD', TIMERS, 'GT', now + ARGV[2], 'vouched ' .. id)
  if redis.call('HEXISTS', RECORDS, id) == 0 then
    redis.call('HSET', SECRETS, id, ARGV[i + 1])
    settle(id, {
      state = aside_until(id) > 0 and 'aside' or 'ready',
      origin = 'settings', generation = 1, trial = 1, strikes = 0, expires = 0, hits = {},
    })
    tell()
  end
end
return 1
""",
    "register",
)
