"""What is measured: this gateway, the plain proxy, and LiteLLM where it is installed; each as the processes it consists of."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from cli.embedded import EmbeddedRedis, find_server

CHECKOUT = Path(__file__).resolve().parents[1]
KEY = "sk-sluice-benchmark-key-000000"
START_SECONDS = 30.0
SLOW_START_SECONDS = 120.0


@dataclass
class Target:
    """`parts`: the processes by role. CPU is user and system time of all of them, in seconds."""

    name: str
    port: int
    parts: dict[str, psutil.Process] = field(default_factory=dict)

    def cpu(self) -> dict[str, float]:
        return {role: sum(process.cpu_times()[:2]) for role, process in self.parts.items()}

    def memory(self) -> dict[str, int]:
        return {role: process.memory_info().rss for role, process in self.parts.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """One of our modules as a child, ended with the block."""
    words = [sys.executable, "-m", *arguments]
    with command(words, {"PYTHONPATH": str(CHECKOUT), **environment}, stdout=subprocess.PIPE) as child:
        yield child


@contextlib.contextmanager
def command(words: list[str], environment: dict[str, str], stdout: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A child of ours, ended with the block."""
    child = subprocess.Popen(
        words, cwd=CHECKOUT, env={**os.environ, **environment}, stdout=stdout, stderr=subprocess.DEVNULL
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()


@contextlib.contextmanager
def upstream() -> Iterator[int]:
    with process("bench.upstream", "0") as child:
        assert child.stdout is not None
        yield int(child.stdout.readline())


@contextlib.contextmanager
def passthrough(upstream_port: int) -> Iterator[Target]:
    port = free_port()
    with process(
        "bench.passthrough", BENCH_UPSTREAM=f"http://127.0.0.1:{upstream_port}/v1", BENCH_PORT=str(port)
    ) as child:
        _wait(f"http://127.0.0.1:{port}/openapi.json")
        yield Target("pass-through proxy", port, {"proxy": psutil.Process(child.pid)})


@contextlib.contextmanager
def sluice(upstream_port: int) -> Iterator[Target]:
    port = free_port()
    redis = EmbeddedRedis(find_server())
    redis.start()
    try:
        with tempfile.TemporaryDirectory(prefix="sluice-bench-") as state:
            settings = {
                "REDIS_URL": redis.url,
                "SLUICE_PORT": str(port),
                "SLUICE_API_KEY": KEY,
                "SLUICE_STATE_DIR": state,
                "OPENAI_API_KEY": "sk-bench-0000000000000000",
                "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
                "OPENAI_MODELS": "bench",
                "SLUICE_WORKER_CONCURRENCY": "5000",
                "SLUICE_DRAIN_SECONDS": "1",
            }
            with process("frontend", **settings) as frontend, process("workers", "openai", **settings) as worker:
                _wait(f"http://127.0.0.1:{port}/v1/models/bench")
                parts = {"frontend": frontend.pid, "worker": worker.pid, "redis": redis.pid}
                yield Target("sluice", port, {role: psutil.Process(pid) for role, pid in parts.items()})
    finally:
        redis.stop()


@contextlib.contextmanager
def litellm(upstream_port: int, executable: Path) -> Iterator[Target]:
    """LiteLLM's proxy, one process, in front of the same upstream. `executable`: `litellm` in an environment of its own."""
    port = free_port()
    parameters = {"model": "openai/bench", "api_base": f"http://127.0.0.1:{upstream_port}/v1", "api_key": "sk-bench"}
    models = [{"model_name": "bench", "litellm_params": parameters}]
    with tempfile.TemporaryDirectory(prefix="litellm-bench-") as directory:
        config = Path(directory) / "config.yaml"
        config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": KEY}}))
        words = [
            str(executable),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--telemetry",
            "False",
        ]
        # Without the first of these it asks the network for prices.
        environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
        with command(words, environment, stdout=subprocess.DEVNULL) as child:
            _wait(f"http://127.0.0.1:{port}/v1/models", seconds=SLOW_START_SECONDS)
            yield Target("LiteLLM", port, {"proxy": psutil.Process(child.pid)})


def _wait(url: str, *, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url, headers={"authorization": f"Bearer {KEY}"}, trust_env=False).status_code == 200:
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{url} did not come up within {seconds:g} s")
        time.sleep(0.05)
