"""One whole world: rough for some seconds, then calm, and then everything has to come to its end.

In some worlds new jobs keep coming while the old ones end, since an idle worker is silent, and silence alone would end what
got stuck. Callers leave an upstream that never ends, so that a call that nobody wants and nobody stops is one that stays.
"""

from collections.abc import Callable

from shared.sansio.job import State
from tests.shared.sansio.road.ground import Ground
from tests.shared.sansio.road.owner import Job, Owner
from tests.shared.sansio.road.worker import Execution, Worker

SETTLE_SECONDS = 28.0
"""Less than what makes a worker forget a finished attempt and an owner give up a job: neither may be what brings the end."""
UNWANTED_SECONDS = 1.5
CANCEL_SECONDS = 0.1


class World(Ground):
    def __init__(self, seed: int, *, trace: bool = False) -> None:
        super().__init__(seed, trace=trace)
        self.ledger: dict[str, Execution] = {}
        self.owner = Owner(self)
        self.workers: list[Worker] = []
        for _ in range(self.rng.randint(1, 3)):
            self._new_worker()
        for _ in range(self.rng.randint(1, 6)):
            self.owner.soon(self.rng.uniform(0, self.calm_at), self.owner.open)
        self.at(self.calm_at, self._become_calm)
        some = self._some_worker
        for fault, seconds, happen in (
            ("deaths", 3.0, some(Worker.die)),
            ("freezes", 3.0, some(Worker.freeze)),
            ("drains", 4.0, some(Worker.drain)),
            ("deaf workers", 3.0, some(Worker.grow_deaf)),
            ("outages", 5.0, self.redis.go_down),
            ("deaf owner", 3.0, self.owner.grow_deaf),
            ("frozen owner", 5.0, self.owner.freeze),
            ("dying owner", 20.0, self.owner.die),
        ):
            if fault in self.faults:
                self.now_and_then(seconds, happen)

    def run(self) -> None:
        """Raises AssertionError when a promise is broken."""
        try:
            while not self._at_rest():
                assert self.now < self.calm_at + SETTLE_SECONDS, f"never comes to rest: {self._unrest()}"
                self.step()
        finally:
            self.check()

    def check(self) -> None:
        for job in self.owner.all:
            job.check(self.ledger)

    def _some_worker(self, happen: Callable[[Worker], None]) -> Callable[[], None]:
        def to_one() -> None:
            worker = self.rng.choice(self.workers)
            happen(worker)
            if not worker.alive or worker.draining:
                self._new_worker()

        return to_one

    def _new_worker(self) -> None:
        worker = Worker(self, f"w{len(self.workers)}", self.owner, self.ledger)
        self.workers.append(worker)
        self.owner.workers[worker.id] = worker

    def _become_calm(self) -> None:
        self.say("calm")
        rough = list(self.owner.all)
        busy = self.rng.random() < 0.3

        def go_on() -> None:
            self._look_for_unwanted()
            for job in self.owner.all:
                if job.follows is not None and not job.over and self.ledger[job.follows].ending == "endless":
                    self._leave(job, self.ledger[job.follows])
            if busy and len(self.owner.jobs) < 3 and not all(job.over for job in rough):
                self.owner.open()
            self.owner.soon(0.5, go_on)

        self.owner.soon(0.0, go_on)

    def _look_for_unwanted(self) -> None:
        """An attempt that its owner does not follow is told to stop, at the latest after its next report."""
        for worker in self._living():
            for (job_id, number), attempt in worker.attempts.items():
                fine = self.owner.wants(worker.id, job_id, number) or not (worker.attentive and self.owner.attentive)
                if fine or not attempt.call.open:
                    attempt.unwanted_since = None
                elif attempt.unwanted_since is None:
                    attempt.unwanted_since = self.now
                assert self.now - (attempt.unwanted_since or self.now) <= UNWANTED_SECONDS, f"still runs: {attempt}"

    def _leave(self, job: Job, call: Execution) -> None:
        """The caller goes away: the call that it was following ends at once."""
        worker = self.owner.workers[call.worker]
        followed = job.ownership.state is State.RUNNING and worker.attentive and self.owner.attentive
        job.leave()
        if followed:
            self.at(CANCEL_SECONDS, lambda: self._must_be_closed(call))

    def _must_be_closed(self, call: Execution) -> None:
        assert not call.open or not self.owner.workers[call.worker].alive, f"still open after its caller left: {call}"

    def _living(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.alive]

    def _at_rest(self) -> bool:
        if not self.calm or any(worker.busy for worker in self._living()):
            return False
        return not self.owner.alive or all(job.over for job in self.owner.all)

    def _unrest(self) -> str:
        jobs = [job.ownership for job in self.owner.all if not job.over]
        retained = [(worker.id, list(worker.attempts.values())) for worker in self._living() if worker.attempts]
        calls = [call.name for worker in self._living() for call in worker.calls if call.open]
        return f"jobs {jobs}, retained {retained}, open calls {calls}, queue {self.redis.queue}"
