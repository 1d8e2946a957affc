"""The supervisor with real child processes: small Python programs that say what they do."""

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio

from cli.children import LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS, Backoff, describe_exit, start
from cli.supervisor import EXIT_KILLED, ChildPlan, Output, Supervisor
from shared.settings import EXIT_SETTINGS

ROOT = Path(__file__).parents[2]
PATIENT = 10.0

# They speak with os.write: a signal may arrive while `print` still holds its buffer, and print cannot be entered twice.
WELL_BEHAVED = """
    import os, signal, sys, time
    def stop(*_):
        os.write(1, b"asked to stop\\n")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    os.write(1, b"up\\n")
    while True:
        time.sleep(60)
"""

DEAF = """
    import os, signal, time
    signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"not listening\\n"))
    os.write(1, b"up\\n")
    while True:
        time.sleep(60)
"""


class Lines(Output):
    """Collects what is said, and lets a test wait for it."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), colour=False)
        self.said: list[str] = []
        self._news = trio.Event()

    def line(self, name: str, text: bytes) -> None:
        self.said.append(f"{name}: {text.decode()}")
        self._news.set()

    async def wait_for(self, wanted: Callable[[list[str]], bool] | str) -> None:
        def there() -> bool:
            return wanted in self.said if isinstance(wanted, str) else wanted(self.said)

        while not there():
            self._news = trio.Event()
            await self._news.wait()


def child(name: str, program: str, *arguments: str) -> ChildPlan:
    return ChildPlan(name, (sys.executable, "-c", textwrap.dedent(program), *arguments), dict(os.environ))


@contextlib.asynccontextmanager
async def running(groups, drain_seconds: float = 5.0) -> AsyncIterator[tuple[Lines, Callable[[], None], list[int]]]:
    """The lines, a function that signals, and a list that holds the exit status once the block is left."""
    lines = Lines()
    send, receive = trio.open_memory_channel[int](5)
    status: list[int] = []

    async def run() -> None:
        status.append(await Supervisor(groups, lines, drain_seconds=drain_seconds).run(receive))

    with trio.fail_after(PATIENT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield lines, lambda: send.send_nowait(signal.SIGINT), status


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_lines_are_passed_on_whole_with_the_last_one_that_has_no_end():
    program = """
        import os, sys
        os.write(1, b"first ha")
        os.write(1, b"lf\\r\\nto stderr next\\n")
        os.write(2, b"an error\\n\\xff\\xc3\\x28\\n" .replace(b"\\xff\\xc3\\x28", b"x"))
        os.write(1, b"y" * 200_000 + b"\\nlast words")
        sys.exit(78)
    """
    async with running([[child("a", program)]]) as (lines, _, status):
        await lines.wait_for("sluice: the settings are wrong; stopping")
    assert status == [EXIT_SETTINGS]
    assert lines.said[:3] == ["a: first half", "a: to stderr next", "a: an error"]
    assert lines.said[4] == "a: " + "y" * 200_000
    assert lines.said[5] == "a: last words"


async def test_a_crashed_child_is_started_again_and_that_is_said(tmp_path):
    program = """
        import os, pathlib, signal, sys, time
        count = pathlib.Path(sys.argv[1])
        runs = len(count.read_text()) if count.exists() else 0
        count.write_text("x" * (runs + 1))
        print("run", runs, flush=True)
        if runs == 0:
            sys.exit(3)
        if runs == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print("steady", flush=True)
        time.sleep(60)
    """
    async with running([[child("a", program, str(tmp_path / "count")), child("b", WELL_BEHAVED)]]) as (
        lines,
        stop,
        status,
    ):
        await lines.wait_for("a: steady")
        stop()
    assert status == [0]
    said = [line for line in lines.said if line.startswith("sluice: a ")]
    assert said[0].startswith("sluice: a exited with status 3; starting it again in 0.")
    assert said[1].startswith("sluice: a was killed by SIGSEGV; starting it again in 0.")
    assert lines.said.count("b: up") == 1, "its neighbour was left alone"


async def test_groups_stop_one_after_the_other():
    slow = WELL_BEHAVED.replace("sys.exit(0)", "time.sleep(0.3); os.write(1, b'done\\n'); sys.exit(0)")
    async with running([[child("f1", slow), child("f2", slow)], [child("w", WELL_BEHAVED)]]) as (lines, stop, status):
        await lines.wait_for(lambda said: {"f1: up", "f2: up", "w: up"} <= set(said))
        stop()
    assert status == [0]
    order = [line for line in lines.said if "up" not in line]
    assert order[0] == "sluice: stopping (once more to stop at once)"
    assert set(order[1:3]) == {"f1: asked to stop", "f2: asked to stop"}
    assert set(order[3:5]) == {"f1: done", "f2: done"}
    assert order[5:] == ["w: asked to stop"]


async def test_stopping_when_idle_is_quick():
    async with running([[child("f", WELL_BEHAVED)], [child("w", WELL_BEHAVED)]]) as (lines, stop, _):
        await lines.wait_for(lambda said: {"f: up", "w: up"} <= set(said))
        began = trio.current_time()
        stop()
    assert trio.current_time() - began < 2


async def test_a_second_signal_asks_all_to_be_quick_and_then_kills():
    async with running([[child("f", DEAF)], [child("w", DEAF)]], drain_seconds=60) as (lines, signal_us, status):
        await lines.wait_for(lambda said: {"f: up", "w: up"} <= set(said))
        signal_us()
        await lines.wait_for("f: not listening")
        assert "w: not listening" not in lines.said, "its turn has not come"
        signal_us()
        await lines.wait_for(lambda said: said.count("f: not listening") == 2 and "w: not listening" in said)
        began = trio.current_time()
    assert trio.current_time() - began < 2.0 + 2.0
    assert status == [EXIT_KILLED]


async def test_a_third_signal_kills_at_once():
    async with running([[child("f", DEAF)]], drain_seconds=60) as (lines, signal_us, status):
        await lines.wait_for("f: up")
        for _ in range(3):
            signal_us()
            began = trio.current_time()
    assert trio.current_time() - began < 1.5
    assert status == [EXIT_KILLED]


async def test_what_does_not_stop_in_time_is_killed(monkeypatch):
    monkeypatch.setattr("cli.supervisor._SLACK_SECONDS", 0.0)
    async with running([[child("f", DEAF)], [child("w", WELL_BEHAVED)]], drain_seconds=0.2) as (lines, stop, status):
        await lines.wait_for(lambda said: {"f: up", "w: up"} <= set(said))
        stop()
    assert "sluice: killing f, which did not stop in time" in lines.said
    assert lines.said.index("w: asked to stop") > lines.said.index("f: not listening")
    assert status == [0]


async def test_stopping_does_not_wait_for_the_pause_after_a_crash(monkeypatch):
    monkeypatch.setattr("cli.children.SHORTEST_PAUSE_SECONDS", 60.0)
    monkeypatch.setattr("cli.children.LONGEST_PAUSE_SECONDS", 60.0)
    async with running([[child("a", "raise SystemExit(1)")]]) as (lines, stop, status):
        await lines.wait_for(lambda said: any("starting it again in 60" in line for line in said))
        stop()
    assert status == [0]


async def test_a_program_that_does_not_exist_is_told():
    async with running([[ChildPlan("a", ("/does/not/exist",), {})]]) as (lines, stop, _):
        await lines.wait_for("sluice: a cannot be started: No such file or directory")
        stop()


async def test_a_grandchild_ends_with_its_parent():
    program = """
        import subprocess, sys
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
        sys.exit(78)
    """
    async with running([[child("a", program)]]) as (lines, _, status):
        await lines.wait_for("sluice: the settings are wrong; stopping")
    assert status == [EXIT_SETTINGS]
    assert eventually(lambda: not is_alive(int(lines.said[0].split()[-1])))


async def test_a_process_that_left_the_session_and_holds_the_output_open_delays_nothing():
    program = """
        import subprocess, sys
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        print(left.pid, flush=True)
        sys.exit(78)
    """
    async with running([[child("a", program)]]) as (lines, _, status):
        await lines.wait_for(lambda said: bool(said))
    os.kill(int(lines.said[0].split()[-1]), signal.SIGKILL)
    assert status == [EXIT_SETTINGS]


SUPERVISE = """
    import os, sys, trio
    from cli.supervisor import ChildPlan, Output, Supervisor, stop_signals

    async def main():
        program = sys.argv[1]
        plans = [ChildPlan(name, (sys.executable, "-c", program), dict(os.environ)) for name in ("a", "b")]
        with trio.open_signal_receiver(*stop_signals()) as signals:
            return await Supervisor([plans], Output(), drain_seconds=5).run(signals)

    sys.exit(trio.run(main))
"""

SAYS_ITS_PID = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("pid", os.getpid(), flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def supervising_process() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that supervises two children, and their process ids."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISE), textwrap.dedent(SAYS_ITS_PID)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        pids = [int(process.stdout.readline().split()[-1]) for _ in range(2)]
        yield process, pids
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def eventually(condition: Callable[[], bool]) -> bool:
    give_up_at = time.monotonic() + PATIENT
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True


def test_nothing_outlives_a_supervisor_that_is_killed():
    with supervising_process() as (process, pids):
        assert all(is_alive(pid) for pid in pids)
        process.kill()
        assert eventually(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_stop_signal_ends_all_in_order(number):
    with supervising_process() as (process, pids):
        process.send_signal(number)
        assert process.wait(PATIENT) == 0
        assert not any(is_alive(pid) for pid in pids)


def test_children_are_started_from_the_main_thread_only():
    caught: list[BaseException] = []

    def elsewhere() -> None:
        try:
            start(["true"], {})
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_pauses_grow_stay_within_bounds_and_begin_anew_after_a_good_run():
    backoff = Backoff(random.Random(1))
    pauses = [backoff.after_crash(0.1) for _ in range(200)]
    assert all(SHORTEST_PAUSE_SECONDS <= pause <= LONGEST_PAUSE_SECONDS for pause in pauses)
    assert pauses[0] <= 0.4
    assert max(pauses) > 8
    assert min(pauses[20:]) < 2, "full jitter, so that many that crash together do not come back together"
    assert backoff.after_crash(60) <= 0.4


def test_exits_are_described():
    assert describe_exit(3) == "exited with status 3"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-63) == "was killed by signal 63"


def test_output_is_aligned_and_coloured_on_a_terminal():
    stream = io.BytesIO()
    output = Output(stream, colour=True)
    output.make_room_for(["frontend.1", "w"])
    output.line("w", b"hello")
    output.say("bye")
    assert stream.getvalue().decode() == "\x1b[36mw          | \x1b[0mhello\n\x1b[33msluice     | \x1b[0mbye\n"
