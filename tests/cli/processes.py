"""Runs the command line as a person would: as a process in a directory of its own, with an environment of its own."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENT = 20.0


def environment(**settings: str) -> dict[str, str]:
    """Nothing but what a process needs, and `settings`."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), **settings}


def sluice(*arguments: str, directory: Path, said: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `sluice …` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=directory,
        env=environment(**settings),
        input=said,
        capture_output=True,
        text=True,
        timeout=PATIENT,
    )


class Running:
    """A `sluice …` that goes on; what it writes is in `output()`."""

    def __init__(self, process: subprocess.Popen[bytes], file: Path) -> None:
        self.process = process
        self._file = file

    def output(self) -> str:
        return self._file.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Until the output matches; the match."""
        give_up_at = time.monotonic() + PATIENT
        while not (match := re.search(pattern, self.output(), re.M)):
            if time.monotonic() > give_up_at or self.process.poll() is not None:
                raise AssertionError(f"no {pattern!r} in:\n{self.output()}")
            time.sleep(0.01)
        return match


@contextlib.contextmanager
def sluice_running(*arguments: str, directory: Path, **settings: str) -> Iterator[Running]:
    """Start `sluice …`; at the end it is stopped, or killed if it does not stop, should it still run."""
    file = directory / f"output-{len(list(directory.glob('output-*')))}.txt"
    process = start([sys.executable, "-m", "cli", *arguments], file, directory, settings)
    try:
        yield Running(process, file)
    finally:
        process.terminate()
        try:
            process.wait(PATIENT)
        finally:
            process.kill()
            process.wait()


def start(command: list[str], file: Path, directory: Path, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with file.open("wb") as sink:
        return subprocess.Popen(
            command,
            cwd=directory,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def children_of(pid: int) -> dict[int, str]:
    """Process id -> command line of the children that live."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found[int(path.parent.name)] = (path.parent / "cmdline").read_text().replace("\0", " ").strip()
    return found


def eventually(condition, seconds: float = PATIENT) -> bool:
    give_up_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True
