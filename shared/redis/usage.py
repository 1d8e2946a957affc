"""What every caller has used: one hash a day, one row for each caller, provider and model.

A row's name is `["caller","provider","model"]` in JSON, its value eight numbers in the order of `COUNTS`, separated by spaces.
Rows are written by the scripts that settle a job (`shared.redis.submission.settlement`), in the step that also makes sure that
each job is settled once; nothing else counts. Model names come from callers, so a day has at most `MOST_ROWS` names; what
comes on top is counted under the model `*`. Days are those of UTC, by Redis' clock.
"""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Final

import msgspec

from shared.redis import keys
from shared.redis.link import Link

COUNTS: Final = (
    "requests",
    "done",
    "failed",
    "cancelled",
    "unsettled",
    "prompt_tokens",
    "completion_tokens",
    "estimated",
)
MOST_ROWS: Final = 10_000
MOST_DAYS: Final = 400

USAGE: Final = f"""
local USAGE, MOST_ROWS, USAGE_SECONDS = '{keys.USAGE.decode()}', {MOST_ROWS}, {MOST_DAYS * 24 * 3600}
local OUTCOMES = {{done = 2, failed = 3, cancelled = 4, unsettled = 5}}  -- their places in a row
local DAY = 86400000

local function day_of(now)  -- YYYY-MM-DD of a time in milliseconds; years begin in March here, so that leap days come last
  local floor = math.floor
  local days = floor(now / DAY) + 719468  -- since the first of March of the year 0
  local era = floor(days / 146097)
  local day = days - era * 146097
  local year = floor((day - floor(day / 1460) + floor(day / 36524) - floor(day / 146096)) / 365)
  day = day - (365 * year + floor(year / 4) - floor(year / 100))
  local month = floor((5 * day + 2) / 153)
  day = day - floor((153 * month + 2) / 5) + 1
  month = month < 10 and month + 3 or month - 9
  return string.format('%04d-%02d-%02d', year + era * 400 + (month <= 2 and 1 or 0), month, day)
end

local function count_usage(day, row, outcome, prompt, completion, estimated)
  local key = USAGE .. day
  local line = redis.call('HGET', key, row)
  local rows = not line and redis.call('HLEN', key)
  if rows and rows >= MOST_ROWS then
    local name = cjson.decode(row)
    name[3] = '*'
    row = cjson.encode(name)
    line = redis.call('HGET', key, row)
  end
  local counts = {{0, 0, 0, 0, 0, 0, 0, 0}}
  local place = 0
  for number in string.gmatch(line or '', '%d+') do
    place = place + 1
    counts[place] = tonumber(number)
  end
  local more = {{1, 0, 0, 0, 0, prompt, completion, estimated and 1 or 0}}
  more[OUTCOMES[outcome]] = 1
  for i = 1, 8 do counts[i] = string.format('%d', counts[i] + more[i]) end
  redis.call('HSET', key, row, table.concat(counts, ' '))
  if rows == 0 then redis.call('EXPIRE', key, USAGE_SECONDS) end
end
"""

_name = msgspec.json.Decoder(tuple[str, str, str]).decode
_encode_name = msgspec.json.Encoder().encode


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one caller used of one model in one day (`YYYY-MM-DD`, UTC).

    `requests` is the sum of the four outcomes; `unsettled`: the processes that knew better died, and the tokens are what was
    reserved. `estimated`: requests whose tokens are the gateway's estimate, because nobody counted them.
    """

    day: str
    caller: str
    provider: str
    model: str
    requests: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    unsettled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0


def row_name(caller: str, provider: str, model: str) -> str:
    """What a row is called in its day's hash. Text, because the msgpack of Redis 6 knows no bytes."""
    return _encode_name((caller, provider, model)).decode()


def rows_of(day: str, pairs: Iterable[tuple[bytes, bytes]]) -> list[UsageRow]:
    """The rows of one day's hash, by caller, provider and model."""
    counts: dict[tuple[str, str, str], list[int]] = {}
    for name, line in pairs:
        numbers = [int(number) for number in line.split()] or [0] * len(COUNTS)
        known = counts.setdefault(_name(name), [0] * len(COUNTS))
        counts[_name(name)] = [before + more for before, more in zip(known, numbers, strict=True)]
    return [
        UsageRow(day=day, caller=caller, provider=provider, model=model, **dict(zip(COUNTS, numbers, strict=True)))
        for (caller, provider, model), numbers in sorted(counts.items())
    ]


async def read_usage(link: Link, first: date, last: date) -> list[UsageRow]:
    """All rows from the day `first` to the day `last`, both included. Raises `RedisError`, and `ValueError` for more than
    `MOST_DAYS` days."""
    if (last - first).days >= MOST_DAYS:
        raise ValueError(f"at most {MOST_DAYS} days at once")
    days = [(first + timedelta(days=count)).isoformat() for count in range((last - first).days + 1)]
    replies: Sequence[list[bytes]] = await link.many([(b"HGETALL", keys.usage(day)) for day in days])
    return [
        row
        for day, flat in zip(days, replies, strict=True)
        for row in rows_of(day, zip(flat[::2], flat[1::2], strict=True))
    ]
