"""What a worker tells of its calls, for the circuits of its provider, and what it knows of them.

A call tells once that it goes well, with its first token, and once more if it ends in a fault after all. Successes are gathered
and told once a second; a fault is told at once, before the owner can have heard of it, so that its next submission finds the
circuit open.
"""

import random
from typing import Final

import trio

from shared.errors import FAULTS, Failure
from shared.redis.circuit import JITTER, SEVERAL, Report, open_now, report
from shared.redis.link import Link
from shared.schema.job import Job

FLUSH_SECONDS: Final = 1.0


class Circuits:
    """The circuits of one provider, as one worker sees them. `watched`: whether anybody is told of anything."""

    def __init__(self, link: Link, provider: str, *, watched: bool, chance: random.Random | None = None) -> None:
        self._link = link
        self._provider = provider
        self._watched = watched
        self._chance = chance or random.Random()
        self._good: dict[str, Report] = {}
        self._open: dict[str, float] = {}

    async def run(self) -> None:
        while True:
            await trio.sleep(FLUSH_SECONDS)
            if self._good:
                good, self._good = self._good, {}
                self._tell(list(good.values()))

    def begin(self, job: Job, *, probe: bool) -> "Call":
        return Call(self, job, probe=probe)

    def refusal(self, model: str) -> Failure | None:
        """Why no call should be made now, as far as this worker has heard: jobs may have been in the queue for a while."""
        wait = self._open.get(model, 0.0) - trio.current_time()
        if wait <= 0:
            return None
        return Failure("circuit_open", "The upstream failed too often lately.", retry_after_seconds=wait)

    def went(self, model: str, caller: str, *, fault: bool = False, good: bool = False, probe: str = "") -> None:
        if not self._watched:
            return
        before = self._good.pop(model, Report(model))
        well = (caller if before.well in ("", caller) else SEVERAL) if good else before.well
        told = Report(model, before.good + good, fault, probe, well, caller if fault else "")
        if fault or probe:
            self._tell([told])
        else:
            self._good[model] = told

    def _tell(self, reports: list[Report]) -> None:
        def answered(reply: object) -> None:
            for one in reports:
                self._open.pop(one.model, None)
            if isinstance(reply, list):
                now = trio.current_time()
                self._open |= {model: now + wait for model, wait in open_now(reply).items()}

        factor = self._chance.uniform(1 - JITTER, 1 + JITTER)
        self._link.post_script(*report(self._provider, reports, factor), on_reply=answered)


class Call:
    """One call of an attempt. `probe`: it was let through an open circuit, and the circuit waits for what becomes of it."""

    def __init__(self, circuits: Circuits, job: Job, *, probe: bool) -> None:
        self._circuits = circuits
        self._model = job.model
        self._caller = job.caller
        self._probe = job.id.hex() if probe else ""
        self._good = False

    @property
    def refusal(self) -> Failure | None:
        return None if self._probe else self._circuits.refusal(self._model)

    def went_well(self) -> None:
        """The upstream answers. Any number of times."""
        if not self._good:
            self._good = True
            self._circuits.went(self._model, self._caller, good=True, probe=self._taken())

    def ended(self, failure: Failure | None, *, complete: bool) -> None:
        """It is over: well, by a failure, or because nobody wanted it any more."""
        if failure is not None and _blames_upstream(failure):
            self._circuits.went(self._model, self._caller, fault=True, probe=self._taken())
        elif complete:
            self.went_well()
        elif probe := self._taken():
            self._circuits.went(self._model, self._caller, probe=probe)

    def _taken(self) -> str:
        probe, self._probe = self._probe, ""
        return probe


def _blames_upstream(failure: Failure) -> bool:
    """A firewall's page instead of an answer is no fault: it is often about the very words of one request, and whoever sends
    such words must not shut everybody else out."""
    by_firewall = failure.kind == "upstream_error" and 400 <= (failure.upstream_status or 0) < 500
    return failure.kind in FAULTS and not by_firewall
