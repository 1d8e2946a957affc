"""The rules of a credential pool, in Lua: what all of its scripts share, and the theory behind it.

One pool per provider, for all of its workers on all machines; what must be decided at once is one script.

A credential is always in one of three states:

    ready ──401, unpaid bill──▶ aside ──the time is over──▶ probation ──a call went well──▶ ready
                                  ▲────────a call failed────────┘
    and from any of them: gone (removed, expired, no worker vouches for it, or failed too often)

`ready` and `probation` may be leased, the latter for one call at a time. Why a credential is `aside` is kept apart: two
timers, `retired` (the upstream does not know it) and `suspended` (its account is unpaid), and it comes back when both are
over. A 429 changes no state: it starts a timer for the credential and one model. All timers are only ever moved later by
those who give hints (`ZADD GT`).

Whatever ends by itself stands in one sorted set, TIMERS, under the time of its end, and every script begins by taking out
what is over (`advance`). So nothing has to look, a worker that dies gives everything back by doing nothing, and the count of
calls per credential is exact: it changes where its lease does, in the same step.

    lease ID NAME      a call holds the credential            rest ID MODEL   429; an empty model stands for all
    retired ID         401                                    suspended ID    402, quota
    vouched ID         a worker has it in its settings

What a keeper must do stands in TASKS, likewise under its time. To take a task is to postpone it: if the keeper dies, it is
due again. `mint` is the sign-up that is under way or may not begin yet.

    mint    refresh ID    expire ID    validate ID    test ID

A verdict counts only with the stamp that the lease was given, `generation.trial`: the generation is that of the secret, the
trial goes up when probation begins. So a late 401 of a secret that was refreshed since, and a late success of a call from
before the credential was set aside, say nothing.

KEYS of every script are the seven of `keys.pool`, in that order, so the pool works in a cluster; Redis 6.2 is enough. All times
are milliseconds of Redis' clock; a test hands in its own as ARGV[1], which is empty otherwise. Scripts that give something
back or keep it alive begin with a write that is allowed when memory is full; Redis lets the rest of such a script pass.
"""

from typing import Final

PRELUDE: Final = """
local RECORDS, SECRETS, ORDER, TIMERS, TASKS, POOL, SIGNUPS = unpack(KEYS)
local MINUTE, HOUR = 60000, 3600000
local SLOT = 1e13  -- ORDER's scores: calls that run * SLOT + time of the last lease

local exactly = tonumber(ARGV[1])
if not exactly then
  local time = redis.call('TIME')
  exactly = time[1] * 1000 + time[2] / 1000
end
local now = math.floor(exactly)

local function tell()
  redis.call('PUBLISH', RECORDS .. ':news', '')
end

local function read(id)
  local text = redis.call('HGET', RECORDS, id)
  return text and cjson.decode(text)
end

local function write(id, record)
  redis.call('HSET', RECORDS, id, cjson.encode(record))
end

local function stamp(record)
  return record.generation .. '.' .. record.trial
end

local function load_of(id)
  return tonumber(redis.call('HGET', POOL, 'load ' .. id)) or 0
end

local function settle(id, record)  -- after a change of state
  write(id, record)
  if record.state == 'aside' then
    redis.call('ZREM', ORDER, id)
  else
    redis.call('ZADD', ORDER, load_of(id) * SLOT + exactly, id)
  end
end

local function occupy(id, name, life)
  local load = redis.call('HINCRBY', POOL, 'load ' .. id, 1)
  redis.call('ZADD', ORDER, 'XX', load * SLOT + exactly, id)
  redis.call('ZADD', TIMERS, now + life, 'lease ' .. id .. ' ' .. name)
end

local function vacate(id)
  if redis.call('HINCRBY', POOL, 'load ' .. id, -1) <= 0 then
    redis.call('HDEL', POOL, 'load ' .. id)
  end
  redis.call('ZADD', ORDER, 'XX', 'INCR', -SLOT, id)
end

local function forget(id)
  redis.call('HDEL', RECORDS, id)
  redis.call('HDEL', SECRETS, id)
  redis.call('ZREM', ORDER, id)
  redis.call('ZREM', TIMERS, 'vouched ' .. id)
  redis.call('ZREM', TASKS, 'refresh ' .. id, 'expire ' .. id, 'validate ' .. id, 'test ' .. id)
end

local function ends(member)  -- 0 if that timer does not run
  return tonumber(redis.call('ZSCORE', TIMERS, member)) or 0
end

local function aside_until(id)
  return math.max(ends('retired ' .. id), ends('suspended ' .. id))
end

local function minted()  -- how many serve, and how many of them will for long
  local all, fresh = 0, 0
  for _, text in ipairs(redis.call('HVALS', RECORDS)) do
    local record = cjson.decode(text)
    if record.origin == 'minted' and record.state ~= 'aside' then
      all = all + 1
      if not record.aging then fresh = fresh + 1 end
    end
  end
  return all, fresh
end

local function come_back(id)
  local record = read(id)
  if not record or record.state ~= 'aside' or aside_until(id) > 0 then return end
  local most = tonumber(redis.call('HGET', POOL, 'most'))
  if record.origin == 'minted' and most and minted() >= most then  -- it was replaced meanwhile
    return forget(id)
  end
  record.state, record.trial = 'probation', record.trial + 1
  settle(id, record)
end

local function advance()
  local over = redis.call('ZRANGEBYSCORE', TIMERS, '-inf', now, 'LIMIT', 0, 1000)
  for _, member in ipairs(over) do
    redis.call('ZREM', TIMERS, member)
  end
  for _, member in ipairs(over) do
    local kind, id = string.match(member, '^(%S+) (%S+)')
    if kind == 'lease' then
      vacate(id)
    elseif kind == 'retired' or kind == 'suspended' then
      come_back(id)
    elseif kind == 'vouched' then
      local record = read(id)
      if record and record.origin == 'settings' then forget(id) end
    end
  end
end
"""

JUDGE: Final = """
local function rest(id, record, model, wait)
  local member = 'rest ' .. id .. ' ' .. model
  if wait < 0 then  -- the upstream did not say how long: 1, 2, 4 .. 60 s
    if ends(member) == 0 then
      local models = 0
      for _ in pairs(record.hits) do models = models + 1 end
      if models > 64 then record.hits = {} end  -- callers may ask for any name
      record.hits[model] = math.min((record.hits[model] or 0) + 1, 7)
      write(id, record)
    end
    wait = math.min(1000 * 2 ^ ((record.hits[model] or 1) - 1), MINUTE)
  end
  redis.call('ZADD', TIMERS, 'GT', now + math.min(wait, HOUR), member)
end

local function set_aside(id, record, reason)
  local fresh = record.state ~= 'aside'
  if fresh then record.strikes = record.strikes + 1 end
  if record.origin == 'minted' and record.strikes > 2 then return forget(id) end
  local back = now + (record.strikes < 2 and 10 * MINUTE or HOUR)
  record.state, record.reason = 'aside', reason
  settle(id, record)
  redis.call('ZADD', TIMERS, 'GT', back, reason .. ' ' .. id)
  if fresh and record.strikes < 2 and reason == 'retired' then  -- it may have been a slip: ask soon, if one can ask
    redis.call('ZADD', TASKS, now + MINUTE / 2, 'validate ' .. id)
  else
    redis.call('ZADD', TASKS, 'GT', back, 'validate ' .. id)
  end
  if reason == 'retired' and record.renewable and (record.refreshing or 0) <= now then
    redis.call('ZADD', TASKS, now, 'refresh ' .. id)
  end
  tell()
end

local function acquit(id, record, model)
  if record.state ~= 'aside' and (record.state ~= 'ready' or record.strikes > 0) then
    record.state, record.strikes = 'ready', 0
    settle(id, record)
    redis.call('ZREM', TASKS, 'validate ' .. id)
  end
  if record.hits[model] then
    record.hits[model] = nil
    write(id, record)
  end
end

local function judge(id, record, verdict, model, wait)
  if verdict == 'ok' then
    acquit(id, record, model)
  elseif verdict == 'rest' then
    rest(id, record, model, wait)
  elseif verdict == 'retire' then
    set_aside(id, record, 'retired')
  elseif verdict == 'suspend' then
    set_aside(id, record, 'suspended')
  elseif verdict == 'valid' and record.reason == 'suspended' then  -- it is known; whether it is paid a call must show
    redis.call('ZREM', TASKS, 'validate ' .. id)
  elseif verdict == 'valid' or verdict == 'cleared' then
    redis.call('ZREM', TIMERS, 'retired ' .. id, 'suspended ' .. id)
    if record.state == 'aside' then record.state = 'probation' end
    acquit(id, record, model)
    tell()
  end
end
"""

SIGN_UP: Final = """
local function signup_under_way()
  local at = tonumber(redis.call('ZSCORE', TASKS, 'mint'))
  return at and at > now and redis.call('HEXISTS', POOL, 'mint') == 1
end

local function signup_at(most, per_hour)  -- when the next one may begin; nil while there is no room for another credential
  if minted() >= most then return nil end
  local at = math.max(now, tonumber(redis.call('ZSCORE', TASKS, 'mint')) or 0)
  redis.call('ZREMRANGEBYSCORE', SIGNUPS, '-inf', now - HOUR)
  local count = redis.call('ZCARD', SIGNUPS)
  if count >= per_hour then
    local oldest = redis.call('ZRANGE', SIGNUPS, count - per_hour, count - per_hour, 'WITHSCORES')
    at = math.max(at, oldest[2] + HOUR)
  end
  return at
end
"""
