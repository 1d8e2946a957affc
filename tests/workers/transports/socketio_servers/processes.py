"""Starts the servers: their processes can be killed and frozen, which nothing in the test's own process could be."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[3]
NODE = shutil.which("node")


@dataclass
class ServerProcess:
    """One server; ended by its id at the latest when its `with` block is left."""

    kind: str
    popen: "subprocess.Popen[str]"
    port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)


@contextmanager
def server(kind: str, ping_interval: float = 25.0, ping_timeout: float = 20.0) -> Iterator[ServerProcess]:
    """`kind`: `python` or `node`. Seconds."""
    times = [str(round(seconds * 1000)) for seconds in (ping_interval, ping_timeout)]
    if kind == "node":
        assert NODE is not None
        command = [NODE, str(HERE / "node_server.js"), *times]
        environment = {**os.environ, "NODE_PATH": str(node_modules())}
    else:
        command = [sys.executable, "-m", f"{__package__}.python_server", *times]
        environment = dict(os.environ)
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as popen:
        try:
            assert popen.stdout is not None
            yield ServerProcess(kind, popen, int(popen.stdout.readline()))
        finally:
            popen.kill()


def node_modules() -> Path:
    """The packages that `package-lock.json` names, checked by its hashes; installed once into `build/`."""
    lock = (HERE / "package-lock.json").read_bytes()
    home = CHECKOUT / "build" / f"socketio-server-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not home.exists():
        home.parent.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=home.parent))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, fresh)
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=fresh, check=True, capture_output=True
        )
        try:
            fresh.rename(home)
        except OSError:  # somebody was faster
            shutil.rmtree(fresh)
    return home / "node_modules"
