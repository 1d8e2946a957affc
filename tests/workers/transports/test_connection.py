"""A connection by itself: closing wins over whatever else happens in the same scheduler turn."""

import socket

import pytest
import trio
import trio.testing

from workers.transports.connection import Connection, Origin

ORIGIN = Origin("http", "localhost", 80)


def pair() -> tuple[Connection, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    return Connection(near, ORIGIN), far


async def test_a_reader_that_is_closed_while_data_arrives_hears_of_the_close(nothing_left: None) -> None:
    outcomes = []

    async def read(connection: Connection) -> None:
        try:
            outcomes.append(await connection.receive())
        except trio.ClosedResourceError:
            outcomes.append(None)

    for _ in range(30):  # trio shuffles the tasks of a turn, so either may run first
        connection, far = pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, connection)
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"x")
            await trio.lowlevel.checkpoint()
            connection.close()
        far.close()
    assert set(outcomes) == {b"x", None}


async def test_writers_and_readers_of_a_closed_connection(nothing_left: None) -> None:
    connection, far = pair()
    assert not connection.offer(bytes(1 << 22))

    async def write() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await connection.flush()

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await connection.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        connection.close()
    connection.close(reset=True)
    with pytest.raises(trio.ClosedResourceError):
        await connection.receive()
    assert not connection.is_quiet()
    far.close()


async def test_offers_leave_in_order(nothing_left: None) -> None:
    connection, far = pair()
    far.setblocking(False)
    sent = b"".join(b"%06d" % n for n in range(200_000))
    for start in range(0, len(sent), 100_000):
        connection.offer(sent[start : start + 100_000])
    got = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.flush)
        while len(got) < len(sent):
            await trio.lowlevel.wait_readable(far)
            got += far.recv(1 << 20)
    assert got == sent
    connection.close()
    far.close()


async def test_only_silence_is_quiet(nothing_left: None) -> None:
    connection, far = pair()
    assert connection.is_quiet()
    assert connection.is_quiet()
    far.send(b"x")
    assert not connection.is_quiet()
    far.close()
    assert not connection.is_quiet()
    connection.close()
