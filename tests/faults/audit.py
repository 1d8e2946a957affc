"""The audit after every fault: nothing runs on, nothing is held, nothing is left behind.

Z1 no credential is leased, unless by a worker that was killed, for less than ten seconds more. Z2 every process has as
many tasks as before. Z3 Redis holds only keys that `shared/redis/keys.py` documents, of the documented type, and with an
expiry where a life in seconds is documented. Z4 streams, pending lists and waiting rooms are empty. Z5 memory is back to
within 5 % + 8 MiB. Z6 open files are back. Z7 no call is open at the upstream. Z8 no concurrency slot is taken, unless no
frontend is left to give it back. Z9 every job that was accepted has ended, and the metrics say so.

Some of it takes its time (a lease that its dead holder cannot give back, an advertisement that expires), so the audit looks
again until it finds nothing or its patience ends, and then says all that it found.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import httpx2
import trio

from shared.redis import keys
from tests.end_to_end.gateway import API_KEY
from tests.faults.house import Held, House

PATIENCE_SECONDS = 13.0
LOOK_SECONDS = 0.1
LEASE_MILLISECONDS = 11_000
COUNTED = ("sluice_jobs_accepted_total", "sluice_jobs_ended_total", "sluice_jobs_open")
MEMORY_SHARE = 1.05
MEMORY_BYTES = 8 * 1024 * 1024
PROVIDER = r"\{?[^{}:]+\}?"
ETERNAL = ("until", "–", "members", "same", "for ever")
"""How the life of a key begins in the table if it needs no expiry; `each` at its end speaks of its members."""


@dataclass(frozen=True)
class Documented:
    """A row of the table: what the key looks like, its Redis type, whether it must expire."""

    pattern: re.Pattern[str]
    type: str
    expires: bool


@cache
def documented() -> list[Documented]:
    """The table in the docstring of `shared.redis.keys`; channels are no keys."""
    rows, stem = [], ""
    for name, kind, life in re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|", keys.__doc__ or "", re.M):
        if name.startswith("…"):
            name = stem + name[1:]
        else:
            stem = name
        pattern = re.sub(r"\\\{[^{}]*\\\}", lambda _: PROVIDER, re.escape(name))
        type_ = {"sorted": "zset"}.get(kind.split(",")[0].split()[0], kind.split(",")[0].split()[0])
        life = life.strip()
        if type_ != "channel":
            rows.append(
                Documented(re.compile(pattern), type_, not life.startswith(ETERNAL) and not life.endswith("each"))
            )
    return rows


async def audit(house: House, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Raises AssertionError with all that is left of the test in the processes, in Redis and at the upstream."""
    await house.close_clients()
    found: list[str] = []
    with trio.move_on_after(patience_seconds):
        while found := [*_upstream(house), *await trio.to_thread.run_sync(lambda: [*_redis(house), *_metrics(house)])]:  # noqa: ASYNC110 - other processes tell nobody
            await trio.sleep(LOOK_SECONDS)
        while found := await _processes(house):  # noqa: ASYNC110 - likewise
            await trio.sleep(LOOK_SECONDS)
    if found:
        raise AssertionError("\n - ".join([f"left after {patience_seconds:g} s:", *found]))


def _upstream(house: House) -> list[str]:
    return [f"Z7 open at the upstream: {call}" for call in house.ledger.open_calls]


def _redis(house: House) -> list[str]:
    client = house.redis.client
    found = []
    for raw in client.scan_iter(count=1000):
        name, type_ = raw.decode(), client.type(raw).decode()
        row = next((row for row in documented() if row.pattern.fullmatch(name)), None)
        if row is None:
            found.append(f"Z3 no such key in the table: {name}")
        elif row.type != type_:
            found.append(f"Z3 {name} is a {type_}, documented as {row.type}")
        elif row.expires and client.ttl(raw) == -1:
            found.append(f"Z3 {name} has no expiry")
        found += _left_in(house, name, type_)
    return found


def _left_in(house: House, name: str, type_: str) -> Iterator[str]:
    client = house.redis.client
    if name.startswith("sluice:jobs:"):
        if length := client.xlen(name):
            yield f"Z4 {length} jobs in {name}"
        for group in client.xinfo_groups(name):
            if group["pending"]:
                yield f"Z4 {group['pending']} jobs pending in {name}"
    elif name.startswith("sluice:waiting:") and type_ in ("zset", "list", "stream", "hash", "set"):
        yield f"Z4 somebody waits in {name}"
    elif name.startswith("sluice:credentials:") and name.endswith(":timers"):
        now = client.time()[0] * 1000
        for member, end in client.zrange(name, 0, -1, withscores=True):
            if member.startswith(b"lease ") and not (_is_the_deads(house, member) and end - now < LEASE_MILLISECONDS):
                yield f"Z1 a credential is leased: {member.decode()}"
    elif name == keys.SLOTS.decode() or re.fullmatch(r"sluice:caller:.*:reserved", name):
        yield from _slots(house, name)


def _slots(house: House, name: str) -> Iterator[str]:
    """Those of dead frontends are given back by the others; where none is left, they are over when they end."""
    if any(frontend.lives for frontend in house.frontends):
        yield f"Z8 {name} is not empty"
    elif name == keys.SLOTS.decode():
        now = house.redis.client.time()[0] * 1000
        for slot, end in house.redis.client.zrange(name, 0, -1, withscores=True):
            if end - now > LEASE_MILLISECONDS:
                yield f"Z8 {name} holds {slot!r} for {(end - now) / 1000:.0f} s"


def _metrics(house: House) -> Iterator[str]:
    """What each frontend has counted since it started adds up."""
    for frontend in house.frontends:
        listens = re.search(r"listens on (127\.0\.0\.1:\d+)", frontend.text())
        if not frontend.lives or listens is None:
            continue
        with contextlib.suppress(httpx2.TransportError):
            headers = {"authorization": f"Bearer {API_KEY}", "connection": "close"}
            answer = httpx2.get(f"http://{listens[1]}/metrics", headers=headers)
            if answer.status_code == 200:
                accepted, ended, still = (_total(answer.text, name) for name in COUNTED)
                if accepted != ended or still:
                    yield f"Z9 {frontend.name} {frontend.pid}: {accepted} jobs accepted, {ended} ended, {still} open"


def _total(exposition: str, name: str) -> int:
    return sum(int(float(value)) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", exposition, re.M))


def _is_the_deads(house: House, member: bytes) -> bool:
    """A lease of a worker that was killed; it ends by itself, and not before: from afar, dead and cut off look alike."""
    return any(house.id_of(worker) in member.decode() for worker in house.dead_workers)


async def _processes(house: House) -> list[str]:
    found = []
    for process in house.processes:
        before = house.before.get(process.name)
        if not process.lives or before is None:
            continue
        try:
            found += [f"{process.name} {process.pid}: {what}" for what in _grown(before, await house.held(process))]
        except trio.TooSlowError:
            found.append(f"{process.name} {process.pid} does not answer")
    return found


def _grown(before: Held, now: Held) -> Iterator[str]:
    if now.jobs:
        yield f"Z9 {now.jobs} jobs"
    if now.tasks > before.tasks:
        yield f"Z2 {now.tasks} tasks, {before.tasks} before"
    if now.files > before.files:
        yield f"Z6 {now.files} open files, {before.files} before"
    if now.resident > before.resident * MEMORY_SHARE + MEMORY_BYTES:
        yield f"Z5 {now.resident >> 10} KiB resident, {before.resident >> 10} KiB before"
