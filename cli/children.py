"""Child processes that never outlive us, and waiting for them without a thread.

Three facts shape this file:

* A child runs in a session of its own, so that Ctrl-C reaches only us and we decide who stops when.
* On Linux the kernel kills a child whose parent dies (PR_SET_PDEATHSIG), even by `kill -9`. "Parent" means the *thread*
  that forked, so a child is started from the main thread, never from one of trio's helper threads, which end when idle.
* The death of a child is seen through a pidfd, which becomes readable; no SIGCHLD, no thread, no polling.
"""

import contextlib
import ctypes
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

import trio

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1
_WANTED_DESCRIPTORS = 65_536

SHORTEST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 10.0
"""A child that ran for this long was well; its next crash counts as the first again."""


def dies_with_us() -> Callable[[], None] | None:
    """A `preexec_fn`: what a new child does before it becomes another program is to ask the kernel to die with us."""
    parent = os.getpid()
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died between the fork and the line above
            os._exit(1)

    return ask


def start(command: Sequence[str], environ: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a child in its own session without input; the child, and a descriptor that reads its output and its errors.

    Raises:
        OSError: the program cannot be started.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a child dies with the thread that started it, so only the main thread may start one")
    reads, writes = os.pipe()
    try:
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=writes,
            stderr=writes,
            start_new_session=True,
            preexec_fn=dies_with_us(),
        )
    except BaseException:
        os.close(reads)
        raise
    finally:
        os.close(writes)
    return process, reads


async def ended(pid: int, poll: Callable[[], int | None]) -> None:
    """Wait until child `pid` has ended; `poll` asks for its exit status without waiting, None while it runs."""
    if sys.platform != "linux":
        while poll() is None:  # noqa: ASYNC110 - without a pidfd nothing tells us
            await trio.sleep(_POLL_SECONDS)
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


async def exited(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a child and end what it left behind; its exit status, negative for a signal."""
    if process.returncode is None:
        await ended(process.pid, process.poll)
        # Until it is waited for, its number cannot belong to somebody else.
        signal_group(process, signal.SIGKILL)
    return process.wait()


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a child and everything in its session; nothing happens if it was waited for."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of the dead
            os.killpg(process.pid, number)


def raise_descriptor_limit() -> None:
    """Lets this process and its children open as many connections as the machine permits, up to 65 536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses what its kernel has no room for
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def describe_exit(status: int) -> str:
    """`exited with status 1`, `was killed by SIGSEGV`."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


class Backoff:
    """How long to wait before a crashed child is started again: full jitter, doubled by each crash in a row."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._crashes = 0

    def after_crash(self, ran_seconds: float) -> float:
        """Seconds to wait, now that a child crashed after `ran_seconds`."""
        self._crashes = 1 if ran_seconds >= STEADY_SECONDS else self._crashes + 1
        ceiling = min(LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS * 2.0 ** min(self._crashes, 16))
        return self._rng.uniform(SHORTEST_PAUSE_SECONDS, ceiling)
