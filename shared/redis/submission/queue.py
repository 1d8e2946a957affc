"""The door's part that keeps the queue bounded. Lua; `shared.redis.submission.script` composes it."""

from typing import Final

QUEUE: Final = """
local function queue_check(ask, now)  -- a refusal, or nil
  local waiting = redis.call('XLEN', JOBS)
  if waiting >= ask.most_waiting then
    return {kind = 'queue_full', waiting = waiting}
  end
end

local function enqueue(ask, now, sealed)  -- the entry in the stream
  return redis.call('XADD', JOBS, '*', 'job', sealed)
end
"""
