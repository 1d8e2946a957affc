"""Circuits: an upstream that fails again and again is left alone for a while. One for each provider and model.

    closed ──more than half of MANY calls in 10-20 s were faults, or IN_A_ROW in a row──▶ open ◀──────────┐
       ▲                                                                         its pause is over │       │ it failed: twice
       └──the probe went well── half-open: one call is the probe, others are turned away ◀─────────┘       │ the pause
                                       └───────────────────────────────────────────────────────────────────┘

Faults are what says that the upstream itself is in trouble (`shared.errors.FAULTS`): no connection, a 5xx, silence. A refused
key, a rate limit, a bad request and a caller who leaves say nothing about it.

Some upstreams fail at certain requests and at no others. So where one caller's calls go wrong while calls of others go well,
the circuit stays closed: nobody shuts out everybody else by what he asks.

Workers say how calls went (`REPORT`): faults at once, successes once a second, all together, so that a closed circuit costs
next to nothing; a fault brings along the successes before it, so that "in a row" is true for each worker. The door reads
(`CIRCUIT`, a part of SUBMIT): one HGET in a hash that does not exist while all circuits are closed. It lets the probe through,
by name, so there is one among all processes; a probe of which nothing is heard for PROBE_SECONDS is given up.

What workers say of other calls counts for nothing until the probe has been heard of: they began before the circuit opened.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from shared.redis import keys
from shared.redis.link import Link
from shared.redis.script import Script, ScriptCall

IN_A_ROW: Final = 5
MANY: Final = 20
PAUSE_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 60.0
JITTER: Final = 0.1
"""Pauses are shorter or longer by up to this share, so that they do not all end together."""
PROBE_SECONDS: Final = 30.0
SEVERAL: Final = "*"
_LIFE_SECONDS: Final = 600
_MOST_MODELS: Final = 1000


class Report(msgspec.Struct, frozen=True):
    """How calls of one model went: `good` ones, then perhaps one `fault`. `probe`: the job in hex, if it was a probe.

    `well`: whose the good ones were, `badly`: whose the fault was: ids of callers, or `SEVERAL`.
    """

    model: str
    good: int = 0
    fault: bool = False
    probe: str = ""
    well: str = ""
    badly: str = ""


class Circuit(msgspec.Struct, frozen=True):
    """A circuit that is not closed, as it lies in Redis. Milliseconds of Redis' clock; `pauses`: how many in a row."""

    pause_ends: float
    pauses: int
    probe: str = ""
    probe_ends: float = 0


CIRCUIT: Final = (
    f"""
local PROBE_MS = {PROBE_SECONDS * 1000:.0f}
"""
    + """
local half_open  -- the circuit for which this job is the probe

local function circuit_check(ask, now)  -- a refusal, or nil
  local found = redis.call('HGET', CIRCUITS, ask.model)
  if not found then return end
  local circuit = cjson.decode(found)
  local wait = circuit.pause_ends - now
  if wait <= 0 and circuit.probe ~= '' and circuit.probe ~= ask.job then wait = math.min(1000, circuit.probe_ends - now) end
  if wait > 0 then return {kind = 'circuit_open', retry_after_seconds = wait / 1000} end
  half_open = circuit
end

local function send_probe(ask, now)
  half_open.probe, half_open.probe_ends = ask.job, now + PROBE_MS
  redis.call('HSET', CIRCUITS, ask.model, cjson.encode(half_open))
end
"""
)

REPORT: Final = Script(
    f"""
local IN_A_ROW, MANY, BUCKET_MS = {IN_A_ROW}, {MANY}, 10000
local PAUSE_MS, LONGEST_MS = {PAUSE_SECONDS * 1000:.0f}, {LONGEST_PAUSE_SECONDS * 1000:.0f}
local LIFE_SECONDS, MOST_MODELS, SEVERAL = {_LIFE_SECONDS}, {_MOST_MODELS}, '{SEVERAL}'
"""
    + """
-- KEYS: circuits that are not closed, what is counted.  ARGV: a test's clock or '', a factor for pauses, reports in msgpack.
-- Answers the models among them whose circuit is open, each followed by the milliseconds that its pause still lasts.
local CIRCUITS, CALLS = KEYS[1], KEYS[2]
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + time[2] / 1000
end

local function open(model, pauses)
  local pause = math.min(LONGEST_MS, PAUSE_MS * 2 ^ (pauses - 1)) * ARGV[2]
  local circuit = {pause_ends = now + pause, pauses = pauses, probe = '', probe_ends = 0}
  redis.call('HSET', CIRCUITS, model, cjson.encode(circuit))
  redis.call('EXPIRE', CIRCUITS, LIFE_SECONDS)
  redis.call('HDEL', CALLS, model)
  return circuit
end

local function of_probe(report, circuit)  -- the circuit, unless it is closed now
  if report.fault then
    return open(report.model, circuit.pauses + 1)
  elseif report.good > 0 then
    redis.call('HDEL', CIRCUITS, report.model)
    return nil
  end
  circuit.probe = ''  -- nobody knows; the next call is the probe
  redis.call('HSET', CIRCUITS, report.model, cjson.encode(circuit))
  return circuit
end

local function together(one, other)  -- whose they are if both are
  if one and other and one ~= other then return SEVERAL end
  return one or other
end

local function one_caller_s_trouble(seen)  -- while calls of others go well
  local well, badly = together(seen.well, seen.well_before), together(seen.badly, seen.badly_before)
  return well and badly ~= SEVERAL and well ~= badly
end

local function count(report)  -- the circuit, if this opens it
  local bucket = math.floor(now / BUCKET_MS)
  local found = redis.call('HGET', CALLS, report.model)
  if not found and (not report.fault and report.good == 0 or redis.call('HLEN', CALLS) >= MOST_MODELS) then return end
  local seen = found and cjson.decode(found) or {bucket = bucket, calls = 0, faults = 0, row = 0}
  seen.calls_before, seen.faults_before = seen.calls_before or 0, seen.faults_before or 0
  if seen.bucket ~= bucket then
    local kept = seen.bucket == bucket - 1
    seen.calls_before, seen.faults_before = kept and seen.calls or 0, kept and seen.faults or 0
    seen.well_before, seen.badly_before = kept and seen.well or nil, kept and seen.badly or nil
    seen.bucket, seen.calls, seen.faults, seen.well, seen.badly = bucket, 0, 0, nil, nil
  end
  seen.calls = seen.calls + report.good
  if report.good > 0 then seen.row, seen.well = 0, together(seen.well, report.well or '') end
  if report.fault then
    seen.calls, seen.faults, seen.row = seen.calls + 1, seen.faults + 1, seen.row + 1
    seen.badly = together(seen.badly, report.badly or '')
  end
  local calls, faults = seen.calls + seen.calls_before, seen.faults + seen.faults_before
  local many = seen.row >= IN_A_ROW or calls >= MANY and faults * 2 > calls
  if report.fault and many and not one_caller_s_trouble(seen) then return open(report.model, 1) end
  redis.call('HSET', CALLS, report.model, cjson.encode(seen))
  redis.call('EXPIRE', CALLS, LIFE_SECONDS)
end

local answer = {}
for _, report in ipairs(cmsgpack.unpack(ARGV[3])) do
  local found = redis.call('HGET', CIRCUITS, report.model)
  local circuit = found and cjson.decode(found)
  if not circuit then
    circuit = count(report)
  elseif report.probe ~= '' and report.probe == circuit.probe then
    circuit = of_probe(report, circuit)
  end
  if circuit then
    answer[#answer + 1] = report.model
    answer[#answer + 1] = math.max(0, math.ceil(circuit.pause_ends - now))
  end
end
return answer
""",
    "report",
)

_encode = msgspec.msgpack.Encoder().encode
_circuit = msgspec.json.Decoder(Circuit)


def report(provider: str, reports: Sequence[Report], factor: float = 1.0, *, now_ms: float | None = None) -> ScriptCall:
    """Say how calls went. `factor`: of pauses that begin now, see `JITTER`; `now_ms`: a test's own clock."""
    clock = "" if now_ms is None else str(now_ms)
    return REPORT, keys.circuits(provider), [clock, str(factor), _encode(reports)]


def open_now(reply: Iterable[bytes | int]) -> dict[str, float]:
    """What `REPORT` answers: for each model whose circuit is not closed, the seconds until its next probe."""
    facts = iter(reply)
    return {str(model, "utf-8"): int(wait) / 1000 for model, wait in zip(facts, facts, strict=True)}  # type: ignore[arg-type]


async def circuits(link: Link, provider: str) -> dict[str, Circuit]:
    """All circuits of a provider that are not closed, by model. Raises `RedisError`."""
    flat = await link.call(b"HGETALL", keys.circuits(provider)[0])
    return {model.decode(): _circuit.decode(text) for model, text in zip(flat[::2], flat[1::2], strict=True)}
