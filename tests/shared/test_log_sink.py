"""A log whose reader sleeps, leaves or has no room costs lines and never time."""

import contextlib
import fcntl
import logging
import os
import threading
import time

import pytest

from shared.log_sink import WAITING_BYTES, LogSink, SinkHandler

QUICK_SECONDS = 2.0
"""Far less than the for-ever that a write into a full pipe takes, far more than a busy machine needs."""


@pytest.fixture
def pipe():
    reads, writes = os.pipe()
    yield reads, writes
    for descriptor in (reads, writes):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def drain(reads):
    """Everything that is in the pipe now."""
    fcntl.fcntl(reads, fcntl.F_SETFL, os.O_NONBLOCK)
    found = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reads, 1 << 20):
            found += piece
    return found


def test_lines_go_out_at_once(pipe):
    reads, writes = pipe
    sink = LogSink(writes)
    sink.write("one")
    sink.write("zwei – 二 \udc80")
    assert drain(reads).decode() == "one\nzwei – 二 \\udc80\n"


def test_a_reader_that_sleeps_stops_nobody_and_gets_everything_that_had_room(pipe):
    reads, writes = pipe
    sink = LogSink(writes)
    lines = [f"{number:06} {'x' * 93}" for number in range(30_000)]  # 3 MB for a pipe of 64 KiB
    began = time.monotonic()
    for line in lines:
        sink.write(line)
    assert time.monotonic() - began < QUICK_SECONDS
    assert sink.dropped > 0
    received = b""
    while piece := drain(reads):
        received += piece
        sink.flush()
    kept = received.decode().splitlines()
    assert kept == lines[: len(kept)], "in order, whole, and nothing missing in between"
    assert len(kept) + sink.dropped == len(lines)
    assert len(received) >= WAITING_BYTES - 200
    sink.write("and on it goes")
    assert drain(reads) == b"and on it goes\n"


def test_a_line_that_is_longer_than_the_pipe_arrives_whole(pipe):
    reads, writes = pipe
    sink = LogSink(writes)
    sink.write("y" * 300_000)
    received = b""
    while piece := drain(reads):
        received += piece
        sink.flush()
    assert received == b"y" * 300_000 + b"\n"


def test_a_reader_that_left_costs_lines_only(pipe):
    reads, writes = pipe
    os.close(reads)
    sink = LogSink(writes)
    for _ in range(3):
        sink.write("nobody reads this")
    assert sink.dropped == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_costs_lines_only():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        sink = LogSink(descriptor)
        began = time.monotonic()
        for _ in range(30_000):
            sink.write("z" * 99)
        sink.close()
        assert time.monotonic() - began < QUICK_SECONDS
        assert sink.dropped == pytest.approx(30_000 - WAITING_BYTES / 100, abs=2)
    finally:
        os.close(descriptor)


def test_what_waits_at_the_end_gets_a_moment(pipe):
    reads, writes = pipe
    sink = LogSink(writes)
    sink.write("a" * 100_000)
    received = []
    reader = threading.Thread(target=lambda: received.append(os.read(reads, 1 << 20)))
    reader.start()
    sink.close()
    reader.join()
    received.append(drain(reads))
    assert b"".join(received) == b"a" * 100_000 + b"\n"


def test_threads_do_not_mix_their_lines(pipe):
    reads, writes = pipe
    sink = LogSink(writes)
    threads = [
        threading.Thread(target=lambda name=name: [sink.write(name * 200) for _ in range(200)]) for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    received = b""
    while any(thread.is_alive() for thread in threads):
        received += drain(reads)
    sink.flush()
    while piece := drain(reads):
        received += piece
        sink.flush()
    lines = received.decode().splitlines()
    assert sorted(lines) == sorted(name * 200 for name in "abcd" for _ in range(200))


class Odd:
    def __repr__(self):
        raise RuntimeError("no words for it")


def test_a_record_that_cannot_be_told_costs_its_line_only(pipe):
    reads, writes = pipe
    handler = SinkHandler(LogSink(writes), logging.Formatter())
    log = logging.Logger("odd")
    log.addHandler(handler)
    log.warning("%r", Odd())
    log.warning("fine")
    first, second = drain(reads).decode().splitlines()
    assert "could not be made" in first
    assert second == "fine"
