"""A soak: many streams while things break at random, and every text compared with what the upstream sent.

    python -m tests.faults.soak --seconds 120

Callers come and stay as long as they like: some read everything, some leave in the middle, some ask for an answer in one piece.
Meanwhile, every second or so, one of `FAULTS`. At the end: counts by outcome, how long callers waited, the slope of each
process's memory, the audit. The seed is told, so that a run can be repeated as far as time allows.
"""

import argparse
import contextlib
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import openai
import trio

from tests.end_to_end.gateway import API_KEY
from tests.faults.audit import audit
from tests.faults.house import House, empty_house
from tests.faults.streams import Told, assert_exact, stream, whole
from tests.redis_server import RedisServer

PAUSE_SECONDS = (0.5, 1.5)
SAMPLE_SECONDS = 1.0
LEAVERS = 0.15
IN_ONE_PIECE = 0.15
STREAM_SECONDS = 1.5
LIMIT_BYTES_A_SECOND = 64 * 1024
"""Of memory that may grow, seen over the whole run; shorter runs see mostly the noise, and allow for it."""
NOISE_BYTES = 12 * 1024 * 1024
EXPECTED = {
    "complete",
    "left",
    "worker_lost",
    "shutting_down",
    "queue_unavailable",
    "provider_unavailable",
    "queue_timeout",
}


@dataclass
class Soak:
    """What has come of it so far. `lies`: streams whose text is not what the upstream sent. `memory`: by process id,
    `(seconds, resident bytes)`."""

    house: House
    dice: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    lies: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    asked: int = 0


# --- callers


async def _caller(soak: Soak, over: trio.Event) -> None:
    async with openai.AsyncOpenAI(
        base_url=soak.house.gateway.base_url, api_key=API_KEY, max_retries=0, timeout=30
    ) as sdk:
        while not over.is_set():
            soak.asked += 1
            await _ask(soak, sdk, f"n{soak.asked}")


async def _ask(soak: Soak, sdk: openai.AsyncOpenAI, name: str) -> None:
    pieces = soak.dice.randint(5, 40)
    words = f"{name} sim:chunks={pieces} sim:gap={STREAM_SECONDS / 40}"
    told, ask = Told(), whole if soak.dice.random() < IN_ONE_PIECE else stream
    patience = soak.dice.uniform(0, STREAM_SECONDS) if soak.dice.random() < LEAVERS else 30.0
    with trio.move_on_after(patience) as stays:
        try:
            told = await ask(soak.house, words, sdk=sdk, told=told)
        except AssertionError as lie:
            soak.lies.append(f"{name}: {lie}")
            return
    if stays.cancelled_caught:
        told.text = "".join(told.pieces)
        told.ended = "cut"
    soak.outcomes["left" if stays.cancelled_caught else told.outcome] += 1
    if told.first_seconds is not None:
        soak.waits.append(told.first_seconds)
    try:
        assert_exact(told, soak.house.ledger, name)
    except AssertionError as lie:
        soak.lies.append(str(lie))


# --- faults


async def _kill_a_worker(soak: Soak) -> None:
    house = soak.house
    up = [worker for worker in house.workers if worker.lives and house.is_advertised(worker)]
    if len(up) > 1:
        soak.dice.choice(up).kill()
        house.add_worker()
        house.workers = [worker for worker in house.workers if worker.lives]


async def _stop_a_worker(soak: Soak) -> None:
    worker = soak.dice.choice(soak.house.workers)
    worker.freeze()
    await trio.sleep(soak.dice.uniform(0.2, 2.0))
    if worker.lives:
        worker.thaw()


async def _stop_the_frontend(soak: Soak) -> None:
    soak.house.frontend.freeze()
    await trio.sleep(soak.dice.uniform(0.2, 1.0))
    soak.house.frontend.thaw()


async def _cut(soak: Soak, kind: str) -> None:
    soak.house.redis.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


async def _restart_redis(soak: Soak) -> None:
    await trio.to_thread.run_sync(soak.house.redis.restart)


async def _stall_redis(soak: Soak) -> None:
    soak.house.redis.pause()
    await trio.sleep(soak.dice.uniform(0.2, 1.5))
    soak.house.redis.resume()


FAULTS: dict[str, Callable[[Soak], Awaitable[None]]] = {
    "kill -9 of a worker": _kill_a_worker,
    "SIGSTOP of a worker": _stop_a_worker,
    "SIGSTOP of the frontend": _stop_the_frontend,
    "CLIENT KILL TYPE pubsub": lambda soak: _cut(soak, "pubsub"),
    "CLIENT KILL TYPE normal": lambda soak: _cut(soak, "normal"),
    "Redis restarts empty": _restart_redis,
    "SIGSTOP of Redis": _stall_redis,
}


async def _break_things(soak: Soak) -> None:
    while True:
        await trio.sleep(soak.dice.uniform(*PAUSE_SECONDS))
        name = soak.dice.choice(list(FAULTS))
        soak.injected[name] += 1
        with trio.CancelScope(shield=True):  # whatever is stopped is continued
            await FAULTS[name](soak)


# --- the run


async def _sample(soak: Soak) -> None:
    began = time.monotonic()
    while True:
        for process in soak.house.processes:
            if process.lives:
                resident = _resident(process.pid)
                soak.memory.setdefault(f"{process.name} {process.pid}", []).append((time.monotonic() - began, resident))
        await trio.sleep(SAMPLE_SECONDS)


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, StopIteration), open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
    return 0


async def run(house: House, seconds: float, *, callers: int, seed: int) -> Soak:
    """Break things for so long under so many callers, then wait for the last of them. The house is open already."""
    soak = Soak(house, random.Random(seed))
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sample, soak)
        async with trio.open_nursery() as asking:
            for _ in range(callers):
                asking.start_soon(_caller, soak, over)
            with trio.move_on_after(seconds):
                await _break_things(soak)
            over.set()
        nursery.cancel_scope.cancel()
    await house.ready()
    return soak


def slopes(soak: Soak) -> dict[str, float]:
    """Bytes a second that each process has grown, after the first quarter of its life; of those that lived for half of the run,
    since what a young process loads says nothing."""
    found = {}
    longest = max((len(samples) for samples in soak.memory.values()), default=0)
    for name, samples in soak.memory.items():
        settled = samples[len(samples) // 4 :]
        if len(settled) >= 5 and len(samples) > longest / 2:
            found[name] = statistics.linear_regression(*zip(*settled, strict=True)).slope
    return found


def complaints(soak: Soak, seconds: float) -> list[str]:
    """What is not as promised; empty if all is well."""
    found = [*soak.lies]
    found += [f"{count} callers were told {name}" for name, count in soak.outcomes.items() if name not in EXPECTED]
    allowed = LIMIT_BYTES_A_SECOND + NOISE_BYTES / seconds
    found += [
        f"{name} grows by {slope / 1024:.0f} KiB a second" for name, slope in slopes(soak).items() if slope > allowed
    ]
    return found


def report(soak: Soak, seconds: float) -> str:
    """For people."""
    waits = sorted(soak.waits)
    lines = [f"{sum(soak.outcomes.values())} answers in {seconds:.0f} s"]
    lines += [f"  {count:6} {name}" for name, count in soak.outcomes.most_common()]
    lines += [f"{sum(soak.injected.values())} faults"]
    lines += [f"  {count:6} {name}" for name, count in soak.injected.most_common()]
    if waits:
        at = {share: waits[min(len(waits) - 1, int(len(waits) * share))] for share in (0.5, 0.99)}
        lines += [f"first token after {at[0.5]:.2f} s (half), {at[0.99]:.2f} s (99 %), {waits[-1]:.2f} s (longest)"]
    lines += [f"memory of {name}: {slope / 1024:+.1f} KiB a second" for name, slope in slopes(soak).items()]
    return "\n".join(lines)


@contextlib.asynccontextmanager
async def soaking_house(workers: int) -> AsyncIterator[House]:
    """A house of its own, for a run outside pytest."""
    with contextlib.closing(RedisServer()) as redis:
        async with empty_house(redis) as house:
            await house.open(workers=workers)
            yield house


async def main(seconds: float, callers: int, workers: int, seed: int) -> int:
    async with soaking_house(workers) as house:
        print(f"soaking for {seconds:.0f} s: {callers} callers, {workers} workers, seed {seed}", flush=True)
        soak = await run(house, seconds, callers=callers, seed=seed)
        print(report(soak, seconds))
        found = complaints(soak, seconds)
        try:
            await audit(house)
        except AssertionError as left:
            found.append(str(left))
        print("\n".join(found) or "every text is what the upstream sent; nothing is left")
        return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--callers", type=int, default=40)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    asked = parser.parse_args()
    sys.exit(trio.run(main, asked.seconds, asked.callers, asked.workers, asked.seed))
