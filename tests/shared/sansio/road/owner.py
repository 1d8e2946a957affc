"""The owner's rules in the model: submit, follow, look after, and what callers see of it."""

from typing import Any

from shared.errors import Failure
from shared.sansio.job import Ownership, State
from shared.sansio.liveness import Liveness
from shared.schema.job import FrameKind, OrderKind, Orders, Parcel
from tests.shared.sansio.road.ground import Ground, Process
from tests.shared.sansio.road.worker import Execution

WATCH_SECONDS = 0.2
PING_SECONDS = 0.5
SUSPECT_SECONDS = 1.1
DEAD_SECONDS = 3.0
LOOK_SECONDS = 0.5
LOOKS = 2
REDIS_AWAY_SECONDS = 10.0
CONSUMED_FRAMES = 4
MAX_STARTS = 2


class Job:
    """A job and its caller. `seen` is what the caller has been given, `outcome` how it was told that this was all."""

    def __init__(self, owner: "Owner", number: int) -> None:
        rng = owner.ground.rng
        self.owner = owner
        self.streaming = rng.random() < 0.7
        self.ownership = Ownership(bytes([number]), max_starts=MAX_STARTS, commits_on_chunk=self.streaming)
        self.seen: list[bytes] = []
        self.outcome: str | None = None
        self.left = False
        self.accepted: list[str] = []
        self.follows: str | None = None
        self.entry: int | None = None
        self.looked_at = 0.0
        self.missed_looks = 0
        self.consumed = 0
        self._done: str | None = None
        self._waiting: list[bytes] = []
        self._taken = 0
        self._reads_every = rng.choice([0.01, 0.3, 2.0])
        self._read()

    @property
    def over(self) -> bool:
        return self.left or self.outcome is not None

    def receive(self, worker: str, attempt: int, seq: int, kind: int, payload: bytes) -> None:
        ownership = self.ownership
        was, ended = ownership.attempt, ownership.state is State.ENDED
        due = ownership.frame(worker, attempt, seq, kind, payload)
        assert not (ended and due), "frames after the end"
        for due_kind, due_payload in due:
            assert self._done is None, "frames after DONE"
            if due_kind == FrameKind.CHUNK:
                self._waiting.append(due_payload)
            elif due_kind == FrameKind.ACCEPTED:
                self.follows = due_payload.decode()
                self.accepted.append(self.follows)
            elif due_kind == FrameKind.DONE:
                self._done = due_payload.decode()
        self.look(was)

    def look(self, was: int) -> None:
        """After anything that may have begun another attempt."""
        if self.ownership.attempt != was:
            assert not self.seen, "another attempt although the caller has seen something"
            self._waiting.clear()
            self._taken = self.consumed = 0
            self.entry = self.follows = None
        assert 0 <= self.ownership.starts <= MAX_STARTS

    def _read(self) -> None:
        """The caller reads what is there, at its own pace; one that does not stream reads at the end."""
        if self.over:
            return
        ended = self.ownership.state is State.ENDED
        if self.streaming or ended:
            self._take()
        if ended:
            self._learn()
        else:
            self.owner.soon(self._reads_every, self._read)

    def _take(self) -> None:
        if self._taken - self.consumed > CONSUMED_FRAMES:
            self.owner.order(self, OrderKind.CONSUMED, self._taken)
        self.consumed = self._taken
        self._taken = self.ownership.received.next
        self.seen += self._waiting
        self._waiting.clear()

    def _learn(self) -> None:
        failure = self.ownership.failure
        assert (self._done is None) != (failure is None), "not exactly one outcome"
        self.outcome = "done" if failure is None else failure.kind
        self.owner.forget(self)

    def leave(self) -> None:
        if not self.over:
            self.left = True
            self.owner.unqueue(self)
            self.ownership.leave()
            self.owner.forget(self)

    def check(self, ledger: dict[str, Execution]) -> None:
        """The promises to the caller."""
        words = [chunk.decode().split() for chunk in self.seen]
        assert len({name for name, _ in words}) <= 1, f"a mixture of attempts: {self.seen}"
        assert [int(number) for _, number in words] == list(range(len(words))), f"not a prefix: {self.seen}"
        assert len(self.accepted) <= MAX_STARTS, f"too many upstream calls: {self.accepted}"
        if self.outcome == "done":
            call = ledger[self._done or ""]
            assert call.ending == "done" and len(words) == call.chunks, f"complete, but {len(words)} of {call}"
            assert not words or words[0][0] == call.name
        assert self.streaming or self.outcome == "done" or not self.seen or self.left or self.ownership.failure


class Owner(Process):
    """One frontend process."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground, "owner")
        self.jobs: dict[bytes, Job] = {}
        self.all: list[Job] = []
        self.workers: dict[str, Process] = {}
        self._orders: dict[str, list[Any]] = {}
        self._liveness = Liveness()
        self._ping: tuple[float, float] | None = None
        self._unheard: dict[str, int] = {}
        self.regularly(WATCH_SECONDS, self._watch)
        self.regularly(PING_SECONDS, self._send_ping)

    def open(self) -> Job:
        job = Job(self, len(self.all))
        self.all.append(job)
        self.jobs[job.ownership.id] = job
        self._submit(job)
        if self.ground.strikes("leaving"):
            self.soon(self.ground.rng.uniform(0, 5), job.leave)
        return job

    def wants(self, worker: str, job_id: bytes, attempt: int) -> bool:
        """Whether this attempt of this worker is, or may become, the one that is followed."""
        if (job := self.jobs.get(job_id)) is None or job.ownership.attempt != attempt:
            return False
        state = job.ownership.state
        return state is State.WAITING or (state is State.RUNNING and job.ownership.worker == worker)

    # --- the queue

    def _submit(self, job: Job) -> None:
        ownership = job.ownership
        ownership.resubmit = False
        job.looked_at = self.ground.now
        job.missed_looks = 0
        attempt = ownership.attempt
        entry = self.redis.add((ownership.id, attempt, job.streaming)) if self.redis.up else None
        reply = None if self.ground.strikes("lost replies") and self.ground.rng.random() < 0.1 else entry
        self.soon(self.ground.rng.choice([0.001, 0.001, 1.0]), lambda: self._submitted(job, attempt, reply))

    def _submitted(self, job: Job, attempt: int, entry: int | None) -> None:
        waiting = job.ownership.state is State.WAITING and job.ownership.attempt == attempt
        if entry is None:
            if waiting:
                self._fail(job, "queue_unavailable")
        elif job.ownership.state is State.ENDED or job.ownership.attempt != attempt:
            self.redis.queue.pop(entry, None)
        else:
            job.entry = entry

    def unqueue(self, job: Job) -> None:
        if job.entry is not None and job.ownership.state is State.WAITING and self.redis.up:
            self.redis.queue.pop(job.entry, None)

    def forget(self, job: Job) -> None:
        self._flush(job)
        self.jobs.pop(job.ownership.id, None)

    def _fail(self, job: Job, kind: str) -> None:
        self.unqueue(job)
        job.ownership.fail(Failure(kind, ""))
        self._flush(job)

    # --- parcels and orders

    def take_in(self, message: object) -> None:
        assert isinstance(message, Parcel)
        worker = message.worker
        self._liveness.heard(worker, self.ground.now)
        for job_id, attempt, *frame in message.frames:
            if (job := self.jobs.get(job_id)) is None:
                self._orders.setdefault(worker, []).append((OrderKind.CANCEL, job_id, attempt, 0))
            else:
                job.receive(worker, attempt, *frame)
                self._collect(job)
        if message.running is not None:
            self._reported(worker, message.running)
        self._flush()

    def _reported(self, worker: str, running: list[tuple[bytes, int, int]]) -> None:
        listed = {(job_id, attempt) for job_id, attempt, _ in running}
        for job in list(self.jobs.values()):
            if job.ownership.worker == worker and (job.ownership.id, job.ownership.attempt) not in listed:
                was = job.ownership.attempt
                job.ownership.unlisted(worker)
                job.look(was)
        for job_id, attempt, next_seq in running:
            if (job := self.jobs.get(job_id)) is None:
                self._orders.setdefault(worker, []).append((OrderKind.CANCEL, job_id, attempt, 0))
                continue
            job.ownership.report(worker, attempt, next_seq)
            self._collect(job)
            if job.consumed and worker == job.ownership.worker:
                self._orders.setdefault(worker, []).append((OrderKind.CONSUMED, job_id, attempt, job.consumed))

    def order(self, job: Job, kind: int, seq: int) -> None:
        ownership = job.ownership
        if ownership.worker is not None:
            ownership.orders.append((ownership.worker, (kind, ownership.id, ownership.attempt, seq)))
            self._flush(job)

    def _collect(self, job: Job) -> None:
        for worker, order in job.ownership.orders:
            self._orders.setdefault(worker, []).append(order)
        job.ownership.orders.clear()

    def _flush(self, job: Job | None = None) -> None:
        if job is not None:
            self._collect(job)
        orders, self._orders = self._orders, {}
        for worker, batch in orders.items():
            self.redis.publish(self.workers[worker], Orders(self.id, batch))

    # --- the watch

    def subscribe(self) -> None:
        super().subscribe()
        if self.listening:
            self._ping = None
            self._liveness.start_again(self.ground.now)
            for job in self.jobs.values():
                job.ownership.nudge()
                self._flush(job)

    def _send_ping(self) -> None:
        sent = self.ground.now
        if self.listening:
            delay = self.ground.rng.uniform(0.5, 2) if self.ground.strikes("slow pings") else 0.001
            self.soon(delay, lambda: self._pong(sent) if self.listening else None)

    def _pong(self, sent: float) -> None:
        self._ping = (sent, self.ground.now)

    def _watch(self) -> None:
        self._ears()
        down_since = self.redis.down_since
        for job in list(self.jobs.values()):
            ownership = job.ownership
            if ownership.state is State.ENDED:
                continue
            if down_since is not None:
                if self.ground.now - down_since > REDIS_AWAY_SECONDS:
                    self._fail(job, "queue_unavailable")
            elif ownership.resubmit:
                self._submit(job)
            elif ownership.state is State.WAITING and job.entry is not None:
                self._look_for_entry(job)

    def _look_for_entry(self, job: Job) -> None:
        if self.ground.now - job.looked_at <= LOOK_SECONDS:
            return
        job.looked_at = self.ground.now
        if job.entry not in self.redis.queue:
            job.missed_looks += 1
            if job.missed_looks >= LOOKS:
                self.ground.say("{} vanished", job.ownership)
                job.entry = None
                job.ownership.vanished()

    def _ears(self) -> None:
        liveness = self._liveness
        if self._ping is not None:
            liveness.ping_answered(*self._ping)
        running = {job.ownership.worker: 0 for job in self.jobs.values() if job.ownership.state is State.RUNNING}
        for name in liveness.peers():
            if name not in running:
                liveness.forget(name)
        for name in running:
            assert name is not None
            silent = liveness.silent_seconds(name)
            listens = self.workers[name].alive and self.workers[name].listening
            misses = self._unheard[name] = (
                self._unheard.get(name, 0) + 1 if silent > SUSPECT_SECONDS and not listens else 0
            )
            if silent > DEAD_SECONDS or misses >= LOOKS:
                self._lost(name)

    def _lost(self, worker: str) -> None:
        self.ground.say("{} is taken for lost", worker)
        self._liveness.forget(worker)
        for job in self.jobs.values():
            if job.ownership.worker == worker:
                was = job.ownership.attempt
                job.ownership.worker_lost()
                job.look(was)
