"""A whole gateway that is going to be maltreated: processes, a simulated upstream, a caller, and what it held before."""

import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import openai
import psutil
import trio

from tests.end_to_end.gateway import API_KEY, CHECKOUT, Gateway, Process, free_port, gateway
from tests.redis_server import RedisServer
from tests.simulators.http_server import Simulator
from tests.simulators.ledger import Call
from tests.simulators.openai_compatible import OpenAICompatible
from tests.waiting import until

START_SECONDS = 20.0
TELL_SECONDS = 5.0
WARM_UP_CALLS = 3
"""For each worker: what a process loads and allocates with its first calls is no leak."""
_NAME = re.compile(r"\b[fw]-[0-9a-f]{16}(-[0-9a-f]+)?")


@dataclass(frozen=True)
class Held:
    """What one process holds: jobs or attempts, trio tasks, open files except connections to the upstream, resident bytes."""

    jobs: int
    tasks: int
    files: int
    resident: int


@dataclass
class House:
    """Start it with `open`; more processes with `add_frontend` and `add_worker`.

    `nursery`: for simulators and proxies; it is cancelled with the house. `before`: what each kind of process held at rest.
    """

    gateway: Gateway
    nursery: trio.Nursery
    upstream: Simulator = field(default_factory=lambda: OpenAICompatible("openai"))
    provider: str = "openai"
    model: str = "gpt-4o-mini"
    frontends: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    before: dict[str, Held] = field(default_factory=dict)
    _clients: list[openai.AsyncOpenAI] = field(default_factory=list)

    @property
    def redis(self) -> RedisServer:
        return self.gateway.redis

    @property
    def ledger(self):
        return self.upstream.ledger

    @property
    def frontend(self) -> Process:
        return self.frontends[0]

    @property
    def sdk(self) -> openai.AsyncOpenAI:
        """OpenAI's own client on trio, without retries, so that every error is seen."""
        if not self._clients:
            self.client()
        return self._clients[0]

    def client(self, *, frontend: int = 0, retries: int = 0) -> openai.AsyncOpenAI:
        """Another client, of that frontend; closed with the house."""
        base_url = f"http://127.0.0.1:{self.gateway.ports[frontend]}/v1"
        made = openai.AsyncOpenAI(base_url=base_url, api_key=API_KEY, max_retries=retries, timeout=30)
        self._clients.append(made)
        return made

    async def open(
        self, *, frontends: int = 1, workers: int = 2, upstream: Simulator | None = None, provider: str = "openai",
        model: str = "gpt-4o-mini", warm_up: bool = True, **environment: str,
    ) -> None:  # fmt: skip
        """Start the simulated upstream (unless it runs already) and these processes, and wait until all of them are ready.

        `environment` is common to all processes. Without `warm_up` no request is made, and the audit leaves out what the
        processes hold.
        """
        self.provider, self.model = provider, model
        self.upstream = upstream or self.upstream
        if not self.upstream.port:
            await self.nursery.start(self.upstream.serve)
        self.gateway.environment |= self.upstream.settings | environment
        for _ in range(frontends):
            self.add_frontend()
        for _ in range(workers):
            self.add_worker()
        await self.ready()
        if warm_up:
            await self.warm_up()

    async def open_havoc(self, *, workers: int, frontends: int = 1, **environment: str) -> None:
        """Workers of a provider that harms its worker (`tests/faults/havoc`), without warm-up: it has no harmless side."""
        settings = {
            "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests' / 'faults' / 'havoc'}",
            "SLUICE_PROVIDER_HAVOC_BASE_URL": "http://127.0.0.1:9/v1",
            "SLUICE_PROVIDER_HAVOC_MODELS": "havoc",
        }
        await self.open(
            frontends=frontends,
            workers=workers,
            provider="havoc",
            model="havoc",
            warm_up=False,
            **settings,
            **environment,
        )

    def add_frontend(self, **environment: str) -> Process:
        """With `SLUICE_PORT` it shares that port; else it has one of its own, at the end of `gateway.ports`."""
        if "SLUICE_PORT" in environment:
            shared = environment | {"SLUICE_SHARE_PORT": "on"}
            self.frontends.append(self.gateway.start("frontend", "frontend", environment=shared))
        else:
            self.frontends.append(self.gateway.frontend(**environment))
        return self.frontends[-1]

    def add_defective_frontend(self) -> Process:
        """One with defects that its callers can call upon; see `tests/faults/defective_frontend.py`."""
        port = free_port()
        self.gateway.ports.append(port)
        defective = self.gateway.start(
            "frontend", "tests.faults.defective_frontend", environment={"SLUICE_PORT": str(port)}
        )
        self.frontends.append(defective)
        return defective

    def add_worker(self, **environment: str) -> Process:
        self.workers.append(self.gateway.worker(self.provider, **environment))
        return self.workers[-1]

    async def ready(self, port: int | None = None) -> None:
        """Until everybody who lives is advertised and each frontend (or the one at `port`) lists the model."""
        with trio.fail_after(START_SECONDS):
            for one in [port] if port else self.gateway.ports:
                await trio.to_thread.run_sync(lambda one=one: self.gateway.wait_ready(self.model, port=one))
            await until(lambda: all(map(self.is_advertised, self.processes)), START_SECONDS)

    def is_advertised(self, process: Process) -> bool:
        """Whether others can know of the process; also of one that has died, for as long as its advertisement lasts."""
        name = _NAME.search(process.text())
        kind = process.name.partition("-")[0]
        return not process.lives or (
            name is not None and self.redis.client.exists(f"sluice:alive:{kind}:{name[0]}") == 1
        )

    @property
    def processes(self) -> list[Process]:
        return [*self.frontends, *self.workers]

    @property
    def dead_workers(self) -> list[Process]:
        """Those that a signal has ended: they could not give anything back."""
        everyone = [process for process in self.gateway.processes if process.name.startswith("worker")]
        return [process for process in everyone if (process.popen.poll() or 0) < 0]

    async def warm_up(self) -> None:
        """A few calls through every process, then remember what each kind of process holds at rest."""
        asked = WARM_UP_CALLS * max(1, len(self.workers))
        for number in range(len(self.frontends)):
            async with self._passing_client(number) as sdk, trio.open_nursery() as nursery:
                for count in range(asked):
                    nursery.start_soon(self._one_call, sdk, count % 2 == 0)
        with trio.fail_after(TELL_SECONDS):
            await self.ledger.wait_until_idle()
        self.ledger.begin_again()
        for process in self.processes:
            while (held := await self.held(process)).jobs:  # noqa: ASYNC110 - it tells nobody
                await trio.sleep(0.05)
            self.before[process.name] = held

    @contextlib.asynccontextmanager
    async def _passing_client(self, frontend: int) -> AsyncIterator[openai.AsyncOpenAI]:
        yield (client := self.client(frontend=frontend))
        await client.close()
        self._clients.remove(client)

    async def _one_call(self, sdk: openai.AsyncOpenAI, stream: bool) -> None:
        said = [{"role": "user", "content": "warm up sim:chunks=20 sim:gap=0.002"}]
        answer = await sdk.chat.completions.create(model=self.model, messages=said, stream=stream)  # type: ignore[call-overload]
        if stream:
            async for _ in answer:
                pass

    async def state(self, process: Process) -> dict[str, object]:
        """What the process says of itself when it is asked with SIGUSR1."""
        said = len(_states(process))
        os.kill(process.pid, signal.SIGUSR1)
        await until(lambda: len(_states(process)) > said, TELL_SECONDS)
        return _states(process)[-1]

    async def held(self, process: Process) -> Held:
        """Connections to the upstream are left out: they are kept for the next call, and the ledger knows of every call."""
        state = await self.state(process)
        upstream = [one for one in _connections(process) if one.raddr and one.raddr.port == self.upstream.port]
        jobs = int(state["jobs" if "jobs" in state else "attempts"])
        return Held(jobs, int(state["tasks"]), int(state["open_files"]) - len(upstream), int(state["resident_bytes"]))

    def id_of(self, process: Process) -> str:
        """The name under which the process is known to others."""
        found = _NAME.search(process.text())
        assert found is not None, process.text()
        return found[0]

    async def take_no_jobs(self, worker: Process) -> None:
        """Freeze a worker so that the queue has nothing to give to it: its last question has been answered with nothing."""
        asking = sum(one.lives and psutil.Process(one.pid).status() != psutil.STATUS_STOPPED for one in self.workers)
        await until(lambda: self._waiting_claims() == asking, TELL_SECONDS)
        worker.freeze()
        await until(lambda: self._waiting_claims() < asking, TELL_SECONDS)

    def _waiting_claims(self) -> int:
        clients = self.redis.client.client_list()
        return sum(one["name"].endswith("-claims") and "b" in one["flags"] for one in clients)

    def worker_of(self, call: Call | None = None) -> Process:
        """The worker that made this upstream call; without one, that of the only open call."""
        if call is None:
            (call,) = self.ledger.open_calls
        for worker in self.workers:
            if worker.lives and any(one.laddr.port == call.client_port for one in _connections(worker)):
                return worker
        raise AssertionError(f"no worker holds {call}")

    async def close_clients(self) -> None:
        for client in self._clients:
            await client.close()
        self._clients.clear()

    def last_words(self, lines: int = 40) -> str:
        """The end of each process's log, for whoever reads of a failed test."""
        tails = [
            (process.name, process.popen.pid, process.text().splitlines()[-lines:])
            for process in self.gateway.processes
        ]
        return "\n".join(f"--- {name} {pid}\n" + "\n".join(tail) for name, pid, tail in tails)


async def says(house: House, process: Process, **numbers: int) -> None:
    """Wait until the process says so when it is asked."""
    while not numbers.items() <= (await house.state(process)).items():  # noqa: ASYNC110 - it says nothing unasked
        await trio.sleep(0.05)


def _connections(process: Process) -> list:
    return [one for one in psutil.Process(process.pid).net_connections("tcp4") if one.laddr]


def _states(process: Process) -> list[dict[str, object]]:
    lines = (line for line in process.text().splitlines() if '"message": "state"' in line)
    return [json.loads(line) for line in lines]


@contextlib.asynccontextmanager
async def empty_house(redis: RedisServer) -> AsyncIterator[House]:
    """A house without processes; everything in it ends with the block."""
    with gateway(redis) as processes:
        async with trio.open_nursery() as nursery:
            house = House(processes, nursery)
            yield house
            await house.close_clients()
            nursery.cancel_scope.cancel()
