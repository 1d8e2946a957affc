"""The network between processes, the machine under them and their clocks misbehave."""

import ast
import contextlib
import itertools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.end_to_end.gateway import API_KEY, CHECKOUT, Process
from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.house import House
from tests.faults.roads import under_streams
from tests.faults.streams import Told, many, stream, whole
from tests.waiting import until

ROOT = os.geteuid() == 0 and all(map(shutil.which, ("ip", "nft", "tc")))
FAKETIME = next(iter(Path("/usr").glob("lib/*/faketime/libfaketimeMT.so.1")), None)


# --- another machine, as far as the network goes


class Elsewhere:
    """A network namespace: another machine with one cable to ours, whose traffic can be dropped, lost at random or slowed."""

    numbers = itertools.count(os.getpid() % 200)

    def __init__(self) -> None:
        number = next(self.numbers) % 250
        self.name = f"sluice-test-{os.getpid()}-{number}"
        self.here, self.there = f"10.213.{number}.1", f"10.213.{number}.2"
        self.cable = f"slc{os.getpid() % 10000}x{number}"
        for command in (
            f"ip netns add {self.name}",
            f"ip link add {self.cable} type veth peer name eth0 netns {self.name}",
            f"ip addr add {self.here}/24 dev {self.cable}",
            f"ip link set {self.cable} up",
            *(
                f"ip -n {self.name} {words}"
                for words in (f"addr add {self.there}/24 dev eth0", "link set eth0 up", "link set lo up")
            ),
            f"ip netns exec {self.name} nft add table inet chaos",
            f"ip netns exec {self.name} nft add chain inet chaos out {{ type filter hook output priority 0 ; }}",
        ):
            subprocess.run(command.split(), check=True, capture_output=True)

    def rule(self, words: str) -> None:
        """For what leaves the machine."""
        subprocess.run(f"ip netns exec {self.name} nft add rule inet chaos out {words}".split(), check=True)

    def heal(self) -> None:
        subprocess.run(f"ip netns exec {self.name} nft flush chain inet chaos out".split(), check=True)

    def thin(self, rate: str) -> None:
        """For what comes to it."""
        shaped = f"tc qdisc add dev {self.cable} root tbf rate {rate} burst 16kb latency 400ms"
        subprocess.run(shaped.split(), check=True)

    def close(self) -> None:
        subprocess.run(f"ip netns del {self.name}".split(), check=False, capture_output=True)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    if not ROOT:
        pytest.skip("needs root, ip, nft and tc; the same with a proxy's hole: test_redis_connections.py, B4 and B5")
    try:
        made = Elsewhere()
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"this machine makes no network namespaces ({refused.stderr.decode().strip()}); see B4 and B5")
    with contextlib.closing(made):
        yield made


async def worker_elsewhere(house: House, elsewhere: Elsewhere) -> tuple[Process, ChaosProxy]:
    """Open the house with one worker, in the namespace; and the proxy on our end of its cable, by which it reaches Redis."""
    await house.open(frontends=0, workers=0, warm_up=False)
    to_redis = ChaosProxy(("127.0.0.1", house.redis.port), host=elsewhere.here)
    to_upstream = ChaosProxy(("127.0.0.1", house.upstream.port), host=elsewhere.here)
    for proxy in (to_redis, to_upstream):
        await house.nursery.start(proxy.run)
    house.add_frontend()
    process = start_elsewhere(
        house, elsewhere,
        REDIS_URL=f"redis://{elsewhere.here}:{to_redis.port}/0",
        SLUICE_ALLOW_OPEN_REDIS="on", SLUICE_ALLOW_HTTP_UPSTREAMS="on",
        OPENAI_BASE_URL=f"http://{elsewhere.here}:{to_upstream.port}/v1",
    )  # fmt: skip
    await house.ready()
    return process, to_redis


def start_elsewhere(house: House, elsewhere: Elsewhere, **environment: str) -> Process:
    log = house.gateway.directory / "worker-elsewhere.log"
    with log.open("wb") as sink:
        popen = subprocess.Popen(
            ["ip", "netns", "exec", elsewhere.name, sys.executable, "-m", "workers", house.provider],
            cwd=CHECKOUT, env=house.gateway._environment() | environment, stdout=sink, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    process = Process(f"worker-{house.provider}", popen, log)
    house.gateway.processes.append(process)
    house.workers.append(process)
    return process


@pytest.mark.fault("E1")
@pytest.mark.promise("P4", "P5", "P7")
async def test_a_worker_on_another_machine_is_cut_off(house: House, elsewhere: Elsewhere) -> None:
    """Every packet to Redis is dropped for 15 s: streams end with worker_lost, other jobs begin anew, it stops by itself."""
    with trio.fail_after(90):
        worker, proxy = await worker_elsewhere(house, elsewhere)
        async with trio.open_nursery() as nursery:
            waiting = Told()

            async def fault() -> None:
                words = "waits sim:fault=hang_before_headers sim:times=1"
                nursery.start_soon(lambda: stream(house, words, told=waiting))
                await house.ledger.wait_for_call(4)
                house.add_worker()
                await house.ready()
                began = trio.current_time()
                elsewhere.rule(f"tcp dport {proxy.port} drop")
                await house.ledger.wait_for(lambda ledger: len(ledger.calls) == 5)
                assert trio.current_time() - began < 4 + 1.5
                await until(lambda: len(house.ledger.open_calls) == 0, 20)
                assert trio.current_time() - began < 15, "without contact it stops its upstream calls by itself"
                elsewhere.heal()

            streams = await under_streams(house, fault, count=3, chunks=1500)
        assert streams.assert_exact() == {"worker_lost": 3}
        assert all(told.seconds < 15 for told in streams.told)
        assert (waiting.outcome, waiting.text) == ("complete", "waits")
        await until(lambda: "giving up" in worker.text(), 5)
        await house.ready()


@pytest.mark.fault("E2")
async def test_packets_are_lost_on_the_way(house: House, elsewhere: Elsewhere) -> None:
    """A worker elsewhere loses 5 % of its packets and gets 1 Mbit/s: slower, and every text is complete."""
    with trio.fail_after(90):
        await worker_elsewhere(house, elsewhere)
        elsewhere.thin("1mbit")
        elsewhere.rule("numgen random mod 100 < 5 drop")
        (await under_streams(house, trio.lowlevel.checkpoint, count=3, chunks=100, gap=0.04)).assert_complete()


@pytest.mark.fault("E3")
@pytest.mark.parametrize("whose", ["redis", "upstream", "caller"])
async def test_sockets_are_destroyed_by_the_kernel(house: House, whose: str) -> None:
    """`ss -K` on the connections to Redis, to the upstream, to callers: as when they are cut."""
    with trio.fail_after(60):
        # Kept connections that are destroyed are found out when they are wanted, so none is kept here.
        await house.open(warm_up=False, REDIS_URL=f"redis://127.0.0.1:{house.redis.port}/0")
        port = {"redis": house.redis.port, "upstream": house.upstream.port, "caller": house.gateway.ports[0]}[whose]

        async def fault() -> None:
            command = ["ss", "-K", "-t", "state", "established", "dport", "=", f":{port}"]
            killed = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
            if str(port).encode() not in killed.stdout:
                pytest.skip("this kernel destroys no sockets for us; the same with a proxy: B3")

        streams = await under_streams(house, fault, chunks=150)
        if whose == "redis":
            streams.assert_complete()
        else:
            outcome = "upstream_disconnected" if whose == "upstream" else "cut"
            assert streams.assert_exact() == {outcome: 5}
        with trio.fail_after(3):
            await house.ledger.wait_until_idle()


# --- clocks


@pytest.mark.fault("E4")
@pytest.mark.promise("P11")
@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (apt install faketime)")
@pytest.mark.parametrize("jump", ["+600", "-600"])
@pytest.mark.parametrize("whose", ["frontend", "worker", "redis"])
async def test_a_clock_jumps(house: House, whose: str, jump: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock of frontends, of workers or of Redis jumps ten minutes ahead or back: nobody is taken for dead."""
    clock = house.gateway.directory / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    with trio.fail_after(90):
        if whose == "redis":
            with monkeypatch.context() as patch:
                for name, value in faked.items():
                    patch.setenv(name, value)
                await trio.to_thread.run_sync(house.redis.restart)
        await house.open(frontends=0, workers=0, warm_up=False)
        house.add_frontend(**(faked if whose == "frontend" else {}))
        for _ in range(2):
            house.add_worker(**(faked if whose == "worker" else {}))
        await house.ready()

        async def fault() -> None:
            clock.write_text(jump)
            await trio.sleep(4)

        (await under_streams(house, fault, count=6, chunks=250)).assert_complete()
        house.ledger.begin_again()
        for told in await many(house, 4, "afterwards"):
            assert told.ended == "complete"
        assert house.ledger.calls_seen == 4
        assert not any("is lost" in process.text() or "is gone" in process.text() for process in house.processes)
        if whose == "redis":
            house.redis.client.flushall()  # a clock that was set back keeps leases for longer than the audit waits


@pytest.mark.fault("E4")
def test_no_duration_is_taken_from_a_wall_clock() -> None:
    """Wall time is stored and shown; what is subtracted or compared comes from a monotonic clock."""
    may = {"workers/keeper.py"}  # a token says itself when it ends, in wall time
    taken = []
    for path in (path for part in ("frontend", "workers", "shared") for path in (CHECKOUT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            compares = isinstance(node, ast.Compare) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub))
            if compares and any(ast.unparse(part) == "time.time()" for part in ast.walk(node)):
                taken.append(str(path.relative_to(CHECKOUT)))
    assert set(taken) <= may


# --- the machine


@pytest.mark.fault("E5")
async def test_logs_cannot_be_written(audited: House) -> None:
    """The disk of the logs is full: requests go on, and what was not written is counted."""
    limits = [(process, resource.prlimit(process.pid, resource.RLIMIT_FSIZE)) for process in audited.processes]
    with trio.fail_after(60):
        for process, (_, hard) in limits:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (process.log.stat().st_size, hard))
        for told in await many(audited, 40, "still here sim:chunks=3"):
            assert told.ended == "complete"
        for process, limit in limits:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
        assert (await whole(audited, "and now")).text == "and now"
        dropped = await metric(audited, "sluice_log_lines_dropped_total")
        waiting = "still here" not in audited.frontend.text() and audited.frontend.text().count('"POST"')
        assert dropped or waiting, "lines were lost and not counted"


async def metric(house: House, name: str) -> float:
    """The sum of a metric of the first frontend."""
    connection = await trio.open_tcp_stream("127.0.0.1", house.gateway.ports[0])
    async with connection:
        request = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nConnection: close\r\n\r\n"
        await connection.send_all(request.encode())
        text = b"".join([piece async for piece in connection]).decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.fault("E6")
@pytest.mark.promise("P11")
async def test_all_cores_are_busy(audited: House) -> None:
    """More busy processes than cores for 6 s: slower, and nobody is taken for dead."""
    with trio.fail_after(60), busy_cores(seconds=6):
        (await under_streams(audited, trio.lowlevel.checkpoint, count=10, chunks=250)).assert_complete()
        assert not any("is lost" in process.text() for process in audited.processes)


@contextlib.contextmanager
def busy_cores(seconds: float) -> Iterator[None]:
    spin = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    busy = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(2 * (os.cpu_count() or 2))]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.fault("E7")
async def test_killed_while_it_starts(house: House) -> None:
    """kill -9 of a worker after its first 100 … 3000 bytes to Redis, over a thin line: those that follow start clean."""
    with trio.fail_after(90):
        await house.open(warm_up=False, workers=1)
        proxy = ChaosProxy(("127.0.0.1", house.redis.port))
        await house.nursery.start(proxy.run)
        proxy.up.bytes_per_second = 4000
        for size in (100, 400, 800, 1500, 3000):
            passed = proxy.up.bytes
            worker = house.gateway.worker("openai", REDIS_URL=f"redis://127.0.0.1:{proxy.port}/0")
            await until(lambda passed=passed, size=size: proxy.up.bytes - passed >= size, 20)
            worker.kill()
        house.workers[0].kill()
        house.add_worker()
        await house.ready()
        for told in await many(house, 5, "all is well"):
            assert told.ended == "complete"
