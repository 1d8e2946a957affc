"""What kills whoever touches it: a poison job, a worker that cannot stay alive, memory that runs out."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cli.doctor import _dead_jobs
from shared.redis import dead_jobs, keys
from tests.end_to_end.gateway import Process
from tests.faults.house import House
from tests.faults.streams import Told, assert_exact, stream, whole
from tests.waiting import until

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
"""Version 1, where a process may make groups; else the limit is the address space, and Python says MemoryError."""
MEMORY_BYTES = 160 * 1024 * 1024


@pytest.mark.fault("A17")
@pytest.mark.promise("P17", "P18")
async def test_a_poison_job(house: House) -> None:
    """a job that kills each worker that takes it: two workers are lost, no more, and it is noted without its words"""
    await house.open_havoc(workers=4)
    words = "prompt-canary-7731"
    with trio.fail_after(40):
        told = await stream(house, words, model="havoc-die")
        others = await whole(house, "a b c")
    assert (told.status, told.code) == (502, "worker_lost")
    assert told.headers["x-should-retry"] == "false"
    assert sorted(worker.popen.poll() is None for worker in house.workers) == [False, False, True, True]
    assert (others.ended, others.text) == ("complete", "a b c")
    await until(lambda: house.redis.client.llen(keys.DEAD) == 1)
    entry = house.redis.client.lrange(keys.DEAD, 0, -1)[0]
    (dead,) = dead_jobs.read([entry])
    assert (dead.provider, dead.model, dead.endpoint, dead.stream) == ("havoc", "havoc-die", "chat", True)
    assert dead.request_id == told.headers["x-request-id"]
    assert set(dead.workers) == {house.id_of(worker) for worker in house.workers if not worker.lives}
    assert words.encode() not in entry and words not in house.frontend.text()
    (finding,) = _dead_jobs(house.redis.client)
    assert finding.level == "bad" and dead.request_id in finding.advice


@pytest.mark.fault("A17")
@pytest.mark.promise("P4", "P17")
async def test_a_job_that_is_lost_once_is_no_poison(house: House) -> None:
    """a worker that dies in mid-stream with one job: an error, and no note, since once may be an accident"""
    await house.open_havoc(workers=2)
    with trio.fail_after(20):
        told = await stream(house, "after=2 a b c", model="havoc-die")
    assert (told.ended, told.code, told.text) == ("error", "worker_lost", "a b")
    assert not house.redis.client.exists(keys.DEAD)


@pytest.mark.fault("A10")
@pytest.mark.promise("P1", "P2", "P3")
async def test_workers_that_do_not_stay_alive(house: House) -> None:
    """for eight seconds, every 0.3 s a worker that has just come up is killed (-9) and a new one started, under load"""
    await house.open(workers=4)
    asked: dict[str, Told] = {}

    async def caller(number: int) -> None:
        count = 0
        while not over.is_set():
            count += 1
            name = f"c{number}x{count}"
            asked[name] = await stream(house, f"{name} sim:chunks=8 sim:gap=0.02")

    over = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(caller, number)
            with trio.move_on_after(8):
                while True:
                    await trio.sleep(0.3)
                    up = [worker for worker in house.workers if worker.lives and house.is_advertised(worker)]
                    if len(up) > 1:  # as fast as this machine can start them
                        up[-1].kill()
                        house.add_worker()
            over.set()
        await house.ready()
    counts = {outcome: sum(told.outcome == outcome for told in asked.values()) for outcome in _outcomes(asked)}
    killed = len(house.dead_workers)
    print(killed, "workers killed:", counts)
    assert set(counts) <= {"complete", "worker_lost", "provider_unavailable", "model_not_found"}, counts
    assert killed > 3 and counts["complete"] > 5
    for name, told in asked.items():
        assert_exact(told, house.ledger, name)
    starts = [json.loads(line).get("attempts", 0) for line in house.frontend.text().splitlines() if '"POST"' in line]
    assert max(starts) <= 2


def _outcomes(asked: dict[str, Told]) -> set[str]:
    return {told.outcome for told in asked.values()}


@pytest.mark.fault("A11")
@pytest.mark.promise("P4", "P5", "P16")
async def test_a_worker_that_runs_out_of_memory(house: House) -> None:
    """a job that takes all the memory that its worker may have, beside a stream and an answer that nobody has seen yet"""
    await house.open_havoc(workers=1)
    eats, other = house.workers[0], house.add_worker(HAVOC="no")
    await house.ready()
    await house.take_no_jobs(other)
    with trio.fail_after(40), little_memory(eats) as killed:
        streaming, waiting, eating = Told(), Told(), Told()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stream(house, "a b c " * 100, told=streaming))
            nursery.start_soon(lambda: _whole(house, "d e f " * 5, waiting))
            await until(lambda: streaming.pieces, 10)
            nursery.start_soon(lambda: stream(house, "g h i", told=eating, model="havoc-eat"))
            if killed:
                await until(lambda: not eats.lives, 20)
            else:
                await until(lambda: eating.error is not None, 20)
                eats.popen.terminate()  # so that both ways end alike: it hands over what it can
            other.thaw()
    assert waiting.text == "d e f " * 4 + "d e f"
    if killed:
        assert (streaming.ended, streaming.code) == ("error", "worker_lost")
        assert ("a b c " * 100).startswith(streaming.text)
        assert (eating.ended, eating.text) == ("complete", "g h i")
        assert eats.popen.returncode == -9
    else:
        assert (eating.status, eating.code) == (500, "internal_error")


async def _whole(house: House, words: str, told: Told) -> None:
    answer = await whole(house, words)
    told.text, told.ended, told.error = answer.text, answer.ended, answer.error


@contextlib.contextmanager
def little_memory(process: Process) -> Iterator[bool]:
    """Limit what the process may take. True: the kernel kills it when it wants more; False: it is refused more."""
    group = MEMORY_GROUPS / f"sluice-test-{process.pid}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(MEMORY_BYTES))
        (group / "cgroup.procs").write_text(str(process.pid))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        resource_limit(process)
        yield False
        return
    try:
        yield True
    finally:
        process.kill()
        group.rmdir()


def resource_limit(process: Process) -> None:
    import resource  # noqa: PLC0415 - Linux only, like the test's other way

    mapped = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.prlimit(process.pid, resource.RLIMIT_AS, (mapped + MEMORY_BYTES, mapped + MEMORY_BYTES))
