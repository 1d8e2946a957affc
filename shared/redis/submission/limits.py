"""The door's part that knows a caller's limits. Lua; `shared.redis.submission.script` composes it.

`limits_check` changes nothing; `limits_charge` runs once it is certain that the job is let in. Neither runs for another attempt
of a job that was charged before (`ask.again`).
"""

from typing import Final

LIMITS: Final = """
local function limits_check(ask, now)  -- a refusal or nil, and what is left, for the headers
  return nil, nil
end

local function limits_charge(ask, now)  -- what is left now, for the headers
  return nil
end
"""


def limits_keys(caller: str) -> list[bytes]:
    """The keys that the fragment reads and writes: LIMIT_KEYS in the script, in this order."""
    return []
