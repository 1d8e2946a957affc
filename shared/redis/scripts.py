"""What must happen atomically, as Lua. Everything here runs on Redis 6.2 and later."""

from typing import Final

from shared.redis.script import Script

SUBMIT: Final = Script(
    """
    -- KEYS[1] the provider's job stream.  ARGV: most entries that may wait, field, sealed job.
    -- Answers the new entry's id, or the number of waiting entries when there is no room.
    local waiting = redis.call('XLEN', KEYS[1])
    if waiting >= tonumber(ARGV[1]) then
      return waiting
    end
    return redis.call('XADD', KEYS[1], '*', ARGV[2], ARGV[3])
    """
)
