"""Keeps a set of processes running, and stops them in order.

1. every child is started; its lines are passed on, each with the child's name in front;
2. a child that crashes is started again after a pause (`children.Backoff`), and that is said;
3. a child whose settings are wrong (status 78) would only fail again: everything stops;
4. the first SIGINT, SIGTERM or SIGHUP stops group after group: SIGTERM, time to finish, SIGKILL for what remains;
5. a second signal asks all of them to be quick, which ends streams with an error that says so, and kills what is left two
   seconds later; a third kills it at once.
"""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import trio

from cli.children import Backoff, describe_exit, exited, signal_group, start
from shared.settings import EXIT_SETTINGS

EXIT_KILLED = 130
EXIT_NOT_FOUND = 127

_SLACK_SECONDS = 3.0
_HURRY_SECONDS = 2.0
_LAST_WORDS_SECONDS = 0.5
_LONGEST_LINE_BYTES = 1 << 20
_COLOURS = (36, 33, 35, 32, 34, 31)


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """One process to keep running."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)


class Output:
    """Where lines go: each begins with the name of the process that it comes from, in colour on a terminal."""

    def __init__(self, stream: BinaryIO | None = None, *, colour: bool | None = None) -> None:
        self._stream = stream or sys.stdout.buffer
        self._colour = self._stream.isatty() if colour is None else colour
        self._width = len("sluice")
        self._numbers: dict[str, int] = {}

    def make_room_for(self, names: Sequence[str]) -> None:
        """Align the lines of all of `names`."""
        self._width = max(self._width, *(len(name) for name in names))

    def line(self, name: str, text: bytes) -> None:
        """Write one line that `name` said."""
        prefix = f"{name:<{self._width}} | ".encode()
        if self._colour:
            number = self._numbers.setdefault(name, len(self._numbers) % len(_COLOURS))
            prefix = b"\x1b[%dm%b\x1b[0m" % (_COLOURS[number], prefix)
        self._stream.write(prefix + text + b"\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Write a line of the supervisor's own."""
        self.line("sluice", text.encode())


class _Child:
    """One process and its successors after a crash. `gone` is set when it runs no more and will not be started again."""

    def __init__(self, plan: ChildPlan, output: Output) -> None:
        self.plan = plan
        self.gone = trio.Event()
        self._output = output
        self._backoff = Backoff()
        self._stopping = trio.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        """Ask it to finish; it is not started again."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it and all that it started, now."""
        self._stopping.set()
        if self._process is not None:
            signal_group(self._process, signal.SIGKILL)

    async def run(self, on_refusal: Callable[[], None]) -> None:
        try:
            while not self._stopping.is_set():
                began = trio.current_time()
                status = await self._run_once()
                if self._stopping.is_set():
                    return
                if status == EXIT_SETTINGS:
                    on_refusal()
                    return
                pause = self._backoff.after_crash(trio.current_time() - began)
                self._output.say(f"{self.plan.name} {describe_exit(status)}; starting it again in {pause:.1f} s")
                with trio.move_on_after(pause):
                    await self._stopping.wait()
        finally:
            self.kill()
            self.gone.set()

    async def _run_once(self) -> int:
        try:
            process, reads = start(self.plan.command, self.plan.environ)
        except OSError as error:
            self._output.say(f"{self.plan.name} cannot be started: {error.strerror}")
            return EXIT_NOT_FOUND
        self._process = process
        try:
            async with trio.lowlevel.FdStream(reads) as pipe, trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, pipe)
                status = await exited(process)
                # Its last words are still in the pipe; but a grandchild may hold the pipe open for ever.
                nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORDS_SECONDS
        finally:
            signal_group(process, signal.SIGKILL)
            process.wait()
        return status

    async def _pass_on(self, pipe: trio.lowlevel.FdStream) -> None:
        rest = b""
        while piece := await pipe.receive_some(65536):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > _LONGEST_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._output.line(self.plan.name, line.rstrip(b"\r"))
        if rest:
            self._output.line(self.plan.name, rest)


class Supervisor:
    """Runs groups of children. Groups stop one after the other, in the order given."""

    def __init__(self, groups: Sequence[Sequence[ChildPlan]], output: Output, *, drain_seconds: float) -> None:
        self._output = output
        self._patience_seconds = drain_seconds + _SLACK_SECONDS
        self._groups = [[_Child(plan, output) for plan in group] for group in groups]
        self._children = [child for group in self._groups for child in group]
        self._killed = False
        output.make_room_for([child.plan.name for child in self._children])

    async def run(self, signals: AsyncIterator[int], beside: Callable[[], Awaitable[None]] | None = None) -> int:
        """Run until a signal arrives or a child refuses its settings; the exit status for this process.

        `signals` comes from `trio.open_signal_receiver(*stop_signals())`; `beside` runs until the stop begins.
        """
        refused = trio.Event()
        async with trio.open_nursery() as nursery:
            for child in self._children:
                nursery.start_soon(child.run, refused.set)
            async with trio.open_nursery() as until_stop:
                if beside is not None:
                    until_stop.start_soon(beside)
                until_stop.start_soon(_then_cancel, refused.wait, until_stop.cancel_scope)
                until_stop.start_soon(_then_cancel, lambda: anext(signals), until_stop.cancel_scope)
            if refused.is_set():
                self._output.say("the settings are wrong; stopping")
            else:
                self._output.say("stopping (once more to stop at once)")
            nursery.start_soon(self._kill_on_signal, signals)
            await self._stop_in_order()
            nursery.cancel_scope.cancel()
        if refused.is_set():
            return EXIT_SETTINGS
        return EXIT_KILLED if self._killed else 0

    async def _stop_in_order(self) -> None:
        for group in self._groups:
            for child in group:
                child.stop()
            with trio.move_on_after(self._patience_seconds) as patience:
                for child in group:
                    await child.gone.wait()
            if patience.cancelled_caught:
                late = [child for child in group if not child.gone.is_set()]
                self._output.say(f"killing {', '.join(child.plan.name for child in late)}, which did not stop in time")
                for child in late:
                    child.kill()
                    await child.gone.wait()

    async def _kill_on_signal(self, signals: AsyncIterator[int]) -> None:
        await anext(signals)
        self._killed = True
        self._output.say("stopping at once")
        for child in self._children:
            child.stop()
        with trio.move_on_after(_HURRY_SECONDS):
            await anext(signals)
        for child in self._children:
            child.kill()


async def _then_cancel(wait: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that stop us; SIGHUP only where nobody asked to ignore it (`nohup`)."""
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hangup)
