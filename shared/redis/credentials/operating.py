"""Scripts of operators: see a pool, let a credential rest, have it tested, remove it."""

from typing import Final

from shared.redis.credentials.rules import PRELUDE
from shared.redis.script import Script

LIST: Final = Script(
    PRELUDE
    + """
-- ARGV: clock. Answers {now, records, secrets, loads and the like, timers without leases, tasks}, each as a flat list.
advance()
local timers = {}
local all = redis.call('ZRANGE', TIMERS, 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 6) ~= 'lease ' then
    timers[#timers + 1] = all[i]
    timers[#timers + 1] = all[i + 1]
  end
end
return {
  now, redis.call('HGETALL', RECORDS), redis.call('HGETALL', SECRETS), redis.call('HGETALL', POOL), timers,
  redis.call('ZRANGE', TASKS, 0, -1, 'WITHSCORES'),
}
""",
    "list",
)

REST: Final = Script(
    PRELUDE
    + """
-- ARGV: clock, id, model or empty for all, ms or 0 to end every rest. An operator's word: it may also shorten.
local id = ARGV[2]
advance()
if redis.call('HEXISTS', RECORDS, id) == 0 then return 0 end
if tonumber(ARGV[4]) > 0 then
  redis.call('ZADD', TIMERS, now + ARGV[4], 'rest ' .. id .. ' ' .. ARGV[3])
else
  for _, member in ipairs(redis.call('ZRANGE', TIMERS, 0, -1)) do
    if string.match(member, '^rest (%S+) ') == id then redis.call('ZREM', TIMERS, member) end
  end
end
tell()
return 1
""",
    "rest",
)

TEST: Final = Script(
    PRELUDE
    + """
-- ARGV: clock, id. Asks the keepers to try the credential.
if redis.call('HEXISTS', RECORDS, ARGV[2]) == 0 then return 0 end
redis.call('ZADD', TASKS, now, 'test ' .. ARGV[2])
tell()
return 1
""",
    "test",
)

REMOVE: Final = Script(
    PRELUDE
    + """
-- ARGV: clock, id. Answers 1, 0 if it is not known, -1 if a live worker has it in its settings.
local id = ARGV[2]
advance()
local record = read(id)
if not record then return 0 end
if record.origin == 'settings' then return -1 end
forget(id)
for _, member in ipairs(redis.call('ZRANGE', TIMERS, 0, -1)) do
  local kind, whose = string.match(member, '^(%S+) (%S+)')
  if whose == id and kind ~= 'lease' then redis.call('ZREM', TIMERS, member) end
end
tell()
return 1
""",
    "remove",
)
