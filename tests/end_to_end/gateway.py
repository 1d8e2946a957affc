"""A whole gateway for a test: one Redis, frontends and workers as real processes, started and ended by their ids."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import openai
import trio

from tests.redis_server import RedisServer

API_KEY = "sk-sluice-test-0123456789abcdef"
SECRET_KEY = "a-secret-key-only-for-tests-0123456789abcdef"
START_SECONDS = 20.0
CHECKOUT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Process:
    """One process of the gateway; `log` holds what it wrote."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def lives(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.popen.kill()
        self.popen.wait()

    def stop(self, seconds: float = 10.0) -> int:
        """SIGTERM, and wait for its end; the exit status."""
        self.popen.terminate()
        return self.popen.wait(seconds)

    def freeze(self) -> None:
        os.kill(self.popen.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.popen.pid, signal.SIGCONT)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Gateway:
    """Start processes with `frontend` and `worker`; everything ends with the `with` block of `gateway()`."""

    redis: RedisServer
    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}/v1"

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def start(
        self, name: str, *arguments: str, environment: Mapping[str, str] = {}, sink: int | None = None
    ) -> Process:
        """`sink`: a descriptor that gets what the process writes, in place of its log."""
        log = self.directory / f"{len(self.processes)}-{name}.log"
        with log.open("wb") as own:
            popen = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=CHECKOUT,
                env={**self._environment(), **environment},
                stdout=own if sink is None else sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def frontend(self, **environment: str) -> Process:
        port = free_port()
        self.ports.append(port)
        return self.start("frontend", "frontend", environment={"SLUICE_PORT": str(port), **environment})

    def worker(self, provider: str, **environment: str) -> Process:
        return self.start(f"worker-{provider}", "workers", provider, environment=environment)

    def wait_ready(self, *models: str, port: int | None = None) -> None:
        """Until the frontend is ready and lists these models."""
        origin = f"http://127.0.0.1:{port or self.ports[0]}"
        key = self.environment.get("SLUICE_API_KEY", API_KEY).split(",")[0] or "sk-of-some-caller"
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx2.HTTPError, KeyError):
                listed = httpx2.get(f"{origin}/v1/models", headers={"authorization": f"Bearer {key}"}).json()
                if set(models) <= {model["id"] for model in listed["data"]}:
                    return
            broken = [process for process in self.processes if process.popen.poll() not in (None, 0)]
            if broken or time.monotonic() > deadline:
                logs = "\n".join(f"--- {process.name}\n{process.text()[-3000:]}" for process in self.processes)
                raise AssertionError(f"the gateway did not come up\n{logs}")
            time.sleep(0.02)

    def client(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key=API_KEY, max_retries=0, timeout=20, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                process.thaw()
                process.popen.terminate()
        for process in self.processes:
            try:
                process.popen.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.directory),
            "PYTHONPATH": str(CHECKOUT),
            "REDIS_URL": self.redis.url,
            "SLUICE_API_KEY": API_KEY,
            "SLUICE_SECRET_KEY": SECRET_KEY,
            "SLUICE_STATE_DIR": str(self.directory),
            "SLUICE_LOG_LEVEL": "info",
            "SLUICE_DRAIN_SECONDS": "2",
            "SLUICE_DISCOVER_SECONDS": "0",  # tests count calls
            "SLUICE_CIRCUIT": "off",  # and have upstreams fail again and again
            **self.environment,
        }


async def until(condition: Callable[[], object]) -> None:
    """Wait for something in another process that tells nobody; use it inside `trio.fail_after`."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await trio.sleep(0.005)


@contextlib.contextmanager
def gateway(redis: RedisServer, **environment: str) -> Iterator[Gateway]:
    """A gateway without processes yet. `environment` is common to all of them."""
    with tempfile.TemporaryDirectory(prefix="sluice-") as directory:
        running = Gateway(redis, Path(directory), dict(environment))
        try:
            yield running
        finally:
            running.close()
