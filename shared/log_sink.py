"""Where log lines go: to a descriptor whose other end may be slow, stuck, full or gone, without ever stopping the process.

A write into a pipe waits for whoever reads it, and the whole event loop would wait with it. So a line is only written when
`poll` says that the descriptor takes something, in pieces of `PIPE_BUF` bytes, which a pipe that is ready takes at once. What
cannot go out waits in memory and is tried again with the next line and by `flush`. When too much waits, and when the disk is
full, further lines are dropped and counted. The one thing that cannot be helped is a disk that hangs inside the kernel.
"""

import contextlib
import errno
import logging
import os
import select
import threading
import time
from typing import Final

WAITING_BYTES: Final = 1024 * 1024
LAST_SECONDS: Final = 1.0
"""How long a process that ends tries to get rid of what waits."""
FORMATTING_ERRORS: Final = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)
"""What a record can raise that holds something odd. It costs the line, not the request."""


class LogSink:
    """One descriptor, shared by all handlers that write to it. Threads may write at the same time."""

    def __init__(self, descriptor: int) -> None:
        self.dropped = 0
        """Lines that nobody will see."""
        self._descriptor = descriptor
        self._waiting = bytearray()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Write a line now if that is possible without waiting, else when it is."""
        packed = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            if len(self._waiting) + len(packed) > WAITING_BYTES:
                self._send(0)
            if len(self._waiting) + len(packed) > WAITING_BYTES:
                self.dropped += 1
                return
            self._waiting += packed
            self._send(0)

    def flush(self) -> None:
        """Write what waits, as far as that is possible without waiting."""
        if self._waiting:
            with self._lock:
                self._send(0)

    def close(self) -> None:
        """The process ends: what waits gets a last chance."""
        end = time.monotonic() + LAST_SECONDS
        with self._lock:
            before = -1
            while self._waiting and len(self._waiting) != before and (left := end - time.monotonic()) > 0:
                before = len(self._waiting)
                self._send(left)

    def _send(self, seconds: float) -> None:
        while self._waiting:
            if not self._poll.poll(seconds * 1000):
                return
            try:
                sent = os.write(self._descriptor, self._waiting[: select.PIPE_BUF])
            except BlockingIOError:
                return
            except OSError as problem:
                self._refused(problem)
                return
            del self._waiting[:sent]

    def _refused(self, problem: OSError) -> None:
        """A disk may have room again soon; what is gone for good takes nothing ever again."""
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            self.dropped += self._waiting.count(b"\n")
            self._waiting.clear()


class SinkHandler(logging.Handler):
    """Hands the lines of its formatter to a sink."""

    def __init__(self, sink: LogSink, formatter: logging.Formatter) -> None:
        super().__init__()
        self._sink = sink
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except FORMATTING_ERRORS:
            with contextlib.suppress(*FORMATTING_ERRORS):
                self._sink.write(f"a log line of {record.name}, line {record.lineno}, could not be made")
            return
        self._sink.write(line)

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        """Called by `logging` at the end of the process."""
        self._sink.close()
        super().close()
