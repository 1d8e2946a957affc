"""Neighbours tell the dead from the silent, and nothing of those who live elsewhere."""

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest
import trio

from shared.neighbours import ANSWER_SECONDS, Neighbours, Sign
from tests.waiting import until

NEIGHBOUR = """
import trio
from shared.neighbours import Neighbours
neighbours = Neighbours("w")
print(neighbours.id, flush=True)
trio.run(neighbours.run)
"""


@pytest.fixture
async def me(nursery: trio.Nursery) -> Neighbours:
    me = Neighbours("f")
    if me.id.count("-") < 2:
        pytest.skip("only Linux has names that vanish with their process")
    nursery.start_soon(me.run)
    return me


@pytest.fixture
def neighbour() -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The id of a process, and the process."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        yield process.stdout.readline().decode().strip(), process
        process.kill()


async def test_a_neighbour_that_lives_answers(me: Neighbours, neighbour: tuple[str, "subprocess.Popen[bytes]"]) -> None:
    peer, _ = neighbour
    assert me.ask(peer, trio.current_time()) is Sign.SILENT
    await until(lambda: me.ask(peer, trio.current_time()) is Sign.ANSWERS)


async def test_one_that_is_stopped_is_silent(me: Neighbours, neighbour: tuple[str, "subprocess.Popen[bytes]"]) -> None:
    peer, process = neighbour
    await until(lambda: me.ask(peer, trio.current_time()) is Sign.ANSWERS)
    process.send_signal(signal.SIGSTOP)
    await trio.sleep(0.1)  # for what it had answered before
    later = trio.current_time() + ANSWER_SECONDS + 0.1
    for _ in range(1000):  # more than its socket takes
        assert me.ask(peer, later) is Sign.SILENT
    process.send_signal(signal.SIGCONT)
    await until(lambda: me.ask(peer, trio.current_time()) is Sign.ANSWERS)


async def test_one_that_was_killed_is_gone_at_once(
    me: Neighbours, neighbour: tuple[str, "subprocess.Popen[bytes]"]
) -> None:
    peer, process = neighbour
    await until(lambda: me.ask(peer, trio.current_time()) is Sign.ANSWERS)
    process.kill()
    process.wait()
    assert me.ask(peer, trio.current_time()) is Sign.GONE


async def test_nothing_is_known_of_those_who_live_elsewhere(me: Neighbours) -> None:
    for peer in ("w-0123456789abcdef-00000000", "w-0123456789abcdef", "", "-", "nonsense"):
        assert me.ask(peer, 0.0) is Sign.UNKNOWN


async def test_whatever_strangers_write_neither_ends_us_nor_stays(me: Neighbours) -> None:
    door = b"\0sluice/" + me.id.encode()
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as at_a_path,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as named,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as uninvited,
    ):
        at_a_path.bind(f"{directory}/socket")
        named.bind(b"\0somebody-\xff-else")
        uninvited.bind(b"\0sluice/w-0123456789abcdef-00000000")
        for stranger in (nameless, at_a_path, named, uninvited):
            stranger.setblocking(False)
            for said in (b"!", b"", b"?" * 100, b"?"):
                await until(lambda stranger=stranger, said=said: _sent(stranger, said, door))
        await until(lambda: _read(uninvited) == b"!")  # so what came before was read as well
        for stranger in (nameless, at_a_path, named):
            assert _read(stranger) == b"", "only neighbours are answered"
        assert not me._answered, "nobody was asked, so no answer is remembered"


def _sent(sock: socket.socket, said: bytes, to: bytes) -> bool:
    try:
        sock.sendto(said, to)
    except BlockingIOError:  # too much is unread
        return False
    return True


def _read(sock: socket.socket) -> bytes:
    try:
        return sock.recv(8)
    except BlockingIOError:
        return b""
