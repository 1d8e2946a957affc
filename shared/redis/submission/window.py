"""What a caller was granted within the last minute, in Lua: a sliding window of one-second buckets.

A bucket is a field of one hash: `second → "requests tokens last"`, where `last` is the millisecond of the latest request in it.
A bucket leaves the window as a whole, a minute after its `last`. So no minute, wherever it begins, ever holds more than was
granted, what comes back comes back after a minute at the latest, and there are never more than 61 buckets, however high the
limit. Running totals stand beside the buckets, so a question costs one read and what has left since.

A request that is refused writes nothing: what has left the window is taken out with the next request that is let in.
"""

from typing import Final

WINDOW: Final = """
local MINUTE = 60000

local function bucket_at(key, second)  -- requests, tokens, last; nil if there is none
  local text = redis.call('HGET', key, second)
  if text then
    local requests, tokens, last = text:match('^(%-?%d+) (%-?%d+) (%d+)$')
    return tonumber(requests), tonumber(tokens), tonumber(last)
  end
end

local function window_at(key, now)  -- the window as it is now, and in `left` the buckets that have left it
  local found = redis.call('HMGET', key, 'requests', 'tokens', 'oldest', 'newest')
  local window = {requests = tonumber(found[1]) or 0, tokens = tonumber(found[2]) or 0, left = {},
                  oldest = tonumber(found[3]) or 0, newest = tonumber(found[4]) or 0}
  local newest_second = math.floor(window.newest / 1000)
  if window.newest > now + MINUTE then  -- the clock was set back
    window.oldest = newest_second + 1
  end
  while window.oldest <= newest_second do
    local requests, tokens, last = bucket_at(key, window.oldest)
    if requests then
      if last + MINUTE > now then break end
      window.requests, window.tokens = window.requests - requests, window.tokens - tokens
      table.insert(window.left, window.oldest)
    end
    window.oldest = window.oldest + 1
  end
  if window.oldest > newest_second then
    window.requests, window.tokens, window.empty = 0, 0, true
  end
  return window
end

local function window_add(key, window, now, tokens, count)  -- so many requests more (0 or 1), with their tokens
  local second, last = math.floor(now / 1000), math.ceil(now)
  if window.empty then
    redis.call('DEL', key)
    window.oldest, window.newest, window.empty = second, last, nil
  elseif #window.left > 0 then
    redis.call('HDEL', key, unpack(window.left))
  end
  local requests, before, until_now = bucket_at(key, second)
  window.requests, window.tokens = window.requests + count, window.tokens + tokens
  window.oldest, window.newest = math.min(window.oldest, second), math.max(window.newest, last)
  local bucket = string.format('%d %d %d', (requests or 0) + count, (before or 0) + tokens, math.max(until_now or 0, last))
  redis.call('HSET', key, second, bucket, 'requests', window.requests, 'tokens', window.tokens,
             'oldest', window.oldest, 'newest', window.newest)
  if not requests then redis.call('PEXPIRE', key, MINUTE + 1000) end
end

local function window_correct(key, second, more, now)  -- tokens that were granted in that second were others in the end
  local requests, tokens, last = bucket_at(key, second)
  if requests and last + MINUTE > now then
    redis.call('HSET', key, second, string.format('%d %d %d', requests, tokens + more, last))
    redis.call('HINCRBY', key, 'tokens', more)
  elseif more > 0 then  -- that second has left; what it did not count counts now, else long answers would pass every limit
    window_add(key, window_at(key, now), now, more, 0)
  end
end

local function window_wait(key, window, now, excess, of)  -- milliseconds until so many `requests` or `tokens` have left
  for second = window.oldest, math.floor(window.newest / 1000) do
    local requests, tokens, last = bucket_at(key, second)
    if requests then
      excess = excess - (of == 'requests' and requests or tokens)
      if excess <= 0 then return math.max(1, last + MINUTE - now) end
    end
  end
  return MINUTE
end

local function window_reset(window, now)  -- milliseconds until the window is empty
  return window.empty and 0 or math.min(MINUTE, math.max(0, window.newest + MINUTE - now))
end
"""
