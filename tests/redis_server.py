"""A real Redis server for one test: on a private unix socket and on a TCP port of the loopback interface."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import pytest
import redis

from cli.embedded import EmbeddedRedis, NoServer, find_server, server_version

START_ATTEMPTS = 3


class RedisServer:
    """A server to be maltreated. Starting takes some ten milliseconds, so every test has its own."""

    def __init__(self) -> None:
        for attempt in range(START_ATTEMPTS):
            self.port = _free_port()
            self._embedded = EmbeddedRedis(
                _executable(),
                further=f"bind 127.0.0.1\nport {self.port}\n{_debug_commands()}",
                preexec=_take_file_limits_for_errors,
            )
            try:
                self._embedded.start()
                return
            except NoServer:  # somebody else may have taken the port in between
                if attempt == START_ATTEMPTS - 1:
                    raise

    @property
    def url(self) -> str:
        """Of the unix socket; stays valid over `restart`."""
        return self._embedded.url

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        return self._embedded.socket_path

    @property
    def pid(self) -> int:
        assert self._embedded.pid is not None
        return self._embedded.pid

    @cached_property
    def client(self) -> redis.Redis:
        """An independent client, synchronous: it blocks the event loop, so not for a paused server."""
        return redis.Redis(unix_socket_path=str(self.socket_path), client_name="tests", socket_timeout=5)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._embedded._process.kill()
        self._embedded._process.wait()

    def restart(self, further: str = "") -> None:
        """Come back at the same addresses, empty (unless it has saved something); kills the server if it runs.

        `further`: lines of redis.conf, for this time and all times after.
        """
        if self._embedded.poll() is None:
            self.kill()
        self._embedded._further += f"\n{further}"
        self._embedded.start()

    def pause(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections and bytes, but nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self.client.close()
        if self._embedded.poll() is None:
            self.kill()
        self._embedded.stop()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with contextlib.closing(RedisServer()) as server:
        yield server


def _take_file_limits_for_errors() -> None:
    """A write beyond RLIMIT_FSIZE fails, as on a full disk, and does not end the process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@lru_cache(maxsize=1)
def _executable() -> Path:
    return find_server()


@lru_cache(maxsize=1)
def _debug_commands() -> str:
    """Redis 7 has DEBUG switched off unless told otherwise; Redis 6 does not know the setting."""
    version = server_version(_executable())
    return "enable-debug-command yes" if version is not None and version >= (7,) else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
