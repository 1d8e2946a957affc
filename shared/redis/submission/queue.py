"""The waiting room of one provider, in Lua: a queue that is fair between callers, bounded, and honest about the wait.

Workers claim from the provider's stream, as from a shop's counter. The stream is kept short, because whoever stands in it is
served next, whatever happens; all others wait in the waiting room, where the order can still change:

    submission ──▶ counter (the stream, COUNTER places) ──▶ workers
        └─▶ normal line ──┐     ▲
        └─▶ low line ─────┴─────┘ one moves up for each job that is claimed or withdrawn

**Between callers** (start-time fair queueing): each job gets a turn, one more than its caller's last one, but never an earlier
one than the job that moved up last (`turn` in PACE: the virtual time). The lowest turn moves up first, equal ones in the order
of arrival. So a thousand jobs of one caller take a thousand turns, and the first job of another comes among the first of them.
A caller who has nothing waiting has no past.

**Between classes**: the low line moves only while the normal one is empty, but every LOW_EVERY-th place is its own.

**Bounds**: no more than `most_waiting` jobs, and no caller may hold more than SHARE times the places that are still free: a
caller alone gets nearly all of them, and whoever comes later still finds some. The same holds for bytes, of which there is room
for MOST_BYTES in all: a thousand requests of ten megabytes each would take Redis' memory from everybody.

**The wait**: the claims of the last ten seconds in which somebody waited, and how long those took. Time in which nobody waits
says how much was asked for, not how much can be served, and is not counted. The guess is on the short side, two standard
deviations of as many random events, since a job that is let in may still give up, and one that was refused cannot be served.
Who finds a worker with room for all that stand before it does not wait at all, however slowly the last few were claimed.

What must never happen is a waiting room with somebody in it and an empty counter with nobody left to move them up. So the
counter is refilled by whoever takes something off it (`CLAIMED`, `WITHDRAW`), and a worker that has waited in vain for half a
second says `CLAIMED` with nothing in its hands.

A job's name is `{id in hex}.{attempt}`. In the lines it stands as `{µs of its arrival}:{name}:{whose turn it was}`; PLACES says
for each name where it is: that member, or its entry in the stream. Times are milliseconds of Redis' clock.
"""

from collections.abc import Sequence
from typing import Final

from shared.redis import keys
from shared.redis.script import Script, ScriptCall

COUNTER: Final = 4
"""Jobs in the stream while others wait; more only for a worker that has room for more."""
LONGEST: Final = 64
"""What the stream is filled up to at most."""
LOW_EVERY: Final = 8
SHARE: Final = 8
MOST_BYTES: Final = 128 * 1024 * 1024
"""Sealed jobs in the waiting room of one provider, all together."""

NAMES: Final = f"""
local JOBS, NORMAL, LOW, SEALED, PLACES, TURNS, PACE = unpack(KEYS, 1, 7)
local COUNTER, LONGEST, LOW_EVERY, SHARE, MOST_BYTES = {COUNTER}, {LONGEST}, {LOW_EVERY}, {SHARE}, {MOST_BYTES}
local PACE_MS, SURE_MS, ROOM_MS, PACE_LIFE_MS = 10000, 3000, 3000, 600000
"""

TOOLS: Final = """
local function clock(given)  -- a test brings its own
  if given then return tonumber(given) end
  local time = redis.call('TIME')
  return time[1] * 1000 + time[2] / 1000
end

local function number(hash, field)
  return tonumber(redis.call('HGET', hash, field)) or 0
end

local function at_counter()  -- what was read and is about to be acknowledged does not count
  local length = redis.call('XLEN', JOBS)
  if length < COUNTER then return length end
  local pending = redis.pcall('XPENDING', JOBS, 'workers')
  return pending.err and length or length - pending[1]
end

local function put_on_counter(name, sealed, ...)
  redis.call('HSET', PLACES, name, redis.call('XADD', JOBS, '*', 'job', sealed, 'name', name, ...))
end

local function pace(now)  -- claims of late, and the ms that they took, as far as somebody was waiting
  local read = redis.call('HMGET', PACE, 'claims', 'busy', 'at')
  local decay = math.exp(-math.max(0, now - (tonumber(read[3]) or now)) / PACE_MS)
  return (tonumber(read[1]) or 0) * decay, (tonumber(read[2]) or 0) * decay + PACE_MS * (1 - decay)
end
"""

MOVING: Final = """
local function forget_turn(whose, size)
  local bytes = redis.call('HINCRBY', TURNS, 'bytes', -size)
  if bytes <= 0 then redis.call('HDEL', TURNS, 'bytes') end
  if redis.call('HINCRBY', TURNS, 'waiting ' .. whose, -1) <= 0 then
    redis.call('HDEL', TURNS, 'waiting ' .. whose, 'normal ' .. whose, 'low ' .. whose, 'bytes ' .. whose)
  else
    redis.call('HINCRBY', TURNS, 'bytes ' .. whose, -size)
  end
end

local function leave_line(member)  -- what is left to do when it was taken out of its line
  local name, whose = string.match(member, '^%d+:([^:]*):(.*)$')
  local sealed = redis.call('HGET', SEALED, name)
  forget_turn(whose, sealed and #sealed or 0)
  redis.call('HDEL', SEALED, name)
  redis.call('HDEL', PLACES, name)
  return name, sealed
end

local function next_line()
  local normal, low = redis.call('EXISTS', NORMAL) == 1, redis.call('EXISTS', LOW) == 1
  if low and (not normal or number(PACE, 'passed') >= LOW_EVERY - 1) then
    redis.call('HDEL', PACE, 'passed')
    return LOW, 'low turn'
  elseif normal then
    if low then redis.call('HINCRBY', PACE, 'passed', 1) end
    return NORMAL, 'normal turn'
  end
end

local function refill(room)
  local free = math.max(COUNTER, math.min(room, LONGEST)) - at_counter()
  while free > 0 do
    local line, turn = next_line()
    if not line then break end
    local first = redis.call('ZPOPMIN', line)
    redis.call('HSET', PACE, turn, first[2])
    local name, sealed = leave_line(first[1])
    if sealed then
      put_on_counter(name, sealed)
      free = free - 1
    end
  end
  redis.call('PEXPIRE', PACE, PACE_LIFE_MS)
end
"""

PRELUDE: Final = NAMES + TOOLS

QUEUE: Final = """
local counter = redis.call('XLEN', JOBS)
local normal, low = 0, 0
if redis.call('EXISTS', NORMAL, LOW) > 0 then normal, low = redis.call('ZCARD', NORMAL), redis.call('ZCARD', LOW) end

local function queue_check(ask, now, size)  -- a refusal, or nil
  if ask.returns then return end
  local waiting = counter + normal + low
  if waiting >= ask.most_waiting then
    return {kind = 'queue_full', waiting = waiting}
  elseif normal + low == 0 and counter < COUNTER then
    return
  end
  local own = number(TURNS, 'waiting ' .. ask.whose)
  if own >= SHARE * (ask.most_waiting - waiting) then
    return {kind = 'queue_full', waiting = waiting, own = own}
  end
  local bytes = number(TURNS, 'bytes')
  if normal + low > 0 and bytes + size > MOST_BYTES then
    return {kind = 'queue_full', waiting = waiting}
  elseif own > 0 and number(TURNS, 'bytes ' .. ask.whose) + size > SHARE * (MOST_BYTES - bytes) then
    return {kind = 'queue_full', waiting = waiting, own = own}
  end
  local claims, busy = pace(now)
  if busy < SURE_MS then return end
  local before
  if ask.low then
    before = low + math.min(normal, (LOW_EVERY - 1) * (low + 1))
  else
    local turn = math.max(number(PACE, 'normal turn'), number(TURNS, 'normal ' .. ask.whose)) + 1
    before = redis.call('ZCOUNT', NORMAL, '-inf', turn)
    before = before + math.min(low, math.floor(before / (LOW_EVERY - 1)))
  end
  before = before + counter
  if before <= number(PACE, 'room') and now - number(PACE, 'at') < ROOM_MS then return end
  local wait = before * busy / (claims + 1 + 2 * math.sqrt(claims + 1))
  if wait > ask.patience_ms then
    return {kind = 'queue_full', waiting = waiting, retry_after_seconds = wait / 1000}
  end
end

local function enqueue(ask, now, sealed)
  if half_open then
    send_probe(ask, now)
    put_on_counter(ask.name, sealed, 'probe', '1')
    return
  elseif ask.ahead or (normal + low == 0 and (counter < COUNTER or at_counter() < COUNTER)) then
    put_on_counter(ask.name, sealed)
    return
  end
  if normal + low == 0 then  -- from now on time counts
    redis.call('HSET', PACE, 'at', now, 'room', 0)
    redis.call('PEXPIRE', PACE, PACE_LIFE_MS)
    redis.call('DEL', TURNS)  -- nobody waits, so nothing is counted
  end
  local line, class = NORMAL, 'normal'
  if ask.low then line, class = LOW, 'low' end
  local turn = math.max(number(PACE, class .. ' turn'), number(TURNS, class .. ' ' .. ask.whose)) + 1
  local member = string.format('%016.0f:%s:%s', now * 1000, ask.name, ask.whose)
  redis.call('HSET', TURNS, class .. ' ' .. ask.whose, turn)
  redis.call('HINCRBY', TURNS, 'waiting ' .. ask.whose, 1)
  redis.call('HINCRBY', TURNS, 'bytes ' .. ask.whose, #sealed)
  redis.call('HINCRBY', TURNS, 'bytes', #sealed)
  redis.call('HSET', SEALED, ask.name, sealed)
  redis.call('HSET', PLACES, ask.name, member)
  redis.call('ZADD', line, turn, member)
end
"""

CLAIMED: Final = Script(
    NAMES
    + """
-- ARGV: a test's clock or '', how many jobs the worker could take next, how many entries were read, those, then their names.
local read = tonumber(ARGV[3])
if read > 0 then
  local entries, names = {unpack(ARGV, 4, 3 + read)}, {unpack(ARGV, 4 + read)}
  redis.call('XACK', JOBS, 'workers', unpack(entries))
  redis.call('XDEL', JOBS, unpack(entries))
  if #names > 0 then redis.call('HDEL', PLACES, unpack(names)) end
else
  redis.call('HDEL', PLACES, '')  -- a write that is allowed when memory is full; then the others are as well
end
if redis.call('EXISTS', NORMAL, LOW) == 0 then return 0 end  -- before anything is defined: this is the common case
"""
    + TOOLS
    + MOVING
    + """
local now = clock(tonumber(ARGV[1]))
local claims, busy = pace(now)
local room = tonumber(ARGV[2])
redis.call('HSET', PACE, 'claims', claims + read, 'busy', busy, 'at', now, 'room', room)
refill(room)
return 0
""",
    "claimed",
)

WITHDRAW: Final = Script(
    PRELUDE
    + MOVING
    + """
-- ARGV: names. Takes these jobs out of the queue, wherever they stand; answers how many there were.
local found = 0
for _, name in ipairs(ARGV) do
  local place = redis.call('HGET', PLACES, name)
  if place then
    found = found + 1
    if string.find(place, ':', 1, true) then
      redis.call('ZREM', NORMAL, place)
      redis.call('ZREM', LOW, place)
      leave_line(place)
    else
      redis.call('HDEL', PLACES, name)
      redis.pcall('XACK', JOBS, 'workers', place)
      redis.call('XDEL', JOBS, place)
    end
  end
end
if found > 0 then refill(0) end
return found
""",
    "withdraw",
)


def claimed(
    provider: str, entries: Sequence[bytes], names: Sequence[bytes], room: int, *, now_ms: float | None = None
) -> ScriptCall:
    """A worker has read `entries` and answers for them from now on; whoever waits moves up.

    `names`: of the jobs in them, as far as they are known. `room`: how many more this worker would take at once.
    `now_ms`: a test's own clock.
    """
    clock = "" if now_ms is None else str(now_ms)
    return CLAIMED, keys.queue(provider), [clock, str(room), str(len(entries)), *entries, *names]


def withdraw(provider: str, *names: str) -> ScriptCall:
    """Nobody wants these jobs any more."""
    return WITHDRAW, keys.queue(provider), list(names)
