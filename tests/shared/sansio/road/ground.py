"""What the model stands on: time, chance, a bad Redis, and processes that stand still, grow deaf and die."""

import heapq
import itertools
import random
from collections.abc import Callable

FAULTS = (
    "loss", "doubling", "reordering", "lost replies", "double delivery", "rewinds", "slow pings",
    "deaths", "freezes", "drains", "outages", "deaf owner", "deaf workers", "frozen owner", "dying owner", "leaving",
)  # fmt: skip


Entry = tuple[bytes, int, bool]
"""What a job says in the queue: its id, the attempt, and whether its caller streams."""


class Ground:
    """Simulated time in seconds. Which faults exist at all is drawn once: all of them together hide what two of them do."""

    def __init__(self, seed: int, *, trace: bool) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.faults = {fault for fault in FAULTS if self.rng.random() < 0.4}
        self.rate = self.rng.choice([0.05, 0.2, 0.5])
        self.calm_at = self.rng.uniform(2.0, 9.0)
        self.trace: list[str] | None = [f"seed {seed}: {sorted(self.faults)} at {self.rate}"] if trace else None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.redis = Redis(self)

    @property
    def calm(self) -> bool:
        return self.now >= self.calm_at

    def strikes(self, fault: str) -> bool:
        return fault in self.faults and not self.calm and self.rng.random() < self.rate

    def say(self, text: str, *values: object) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:8.3f} {text.format(*values)}")

    def at(self, seconds: float, happen: Callable[[], object]) -> None:
        """Let it happen so many seconds from now."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happen))

    def now_and_then(self, seconds: float, happen: Callable[[], object]) -> None:
        """Let it happen at random, every `seconds` on average, as long as it is not calm."""

        def again() -> None:
            if not self.calm:
                happen()
                self.now_and_then(seconds, happen)

        self.at(self.rng.expovariate(1 / seconds), again)

    def step(self) -> None:
        self.now, _, happen = heapq.heappop(self._events)
        happen()


class Redis:
    """The queue and the channels. A message reaches a process that listens: perhaps twice, late, or not at all."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.up = True
        self.down_since: float | None = None
        self.queue: dict[int, Entry] = {}
        self.processes: list[Process] = []
        self._entries = itertools.count(1)
        self._life = 0
        self._memory: dict[int, Entry] = {}

    def add(self, wanted: Entry) -> int:
        entry = next(self._entries)
        self.queue[entry] = wanted
        if self.ground.rng.random() < 0.5:
            self._memory = dict(self.queue)
        return entry

    def publish(self, receiver: "Process", message: object) -> int | None:
        """What PUBLISH answers, the number of receivers; None when the answer never came."""
        if not self.up:
            return None
        ground, life = self.ground, self._life
        heard = receiver.alive and receiver.listening
        for _ in range(0 if not heard else 2 if ground.strikes("doubling") else 1):
            if ground.strikes("loss"):
                ground.say("lost on the way to {}: {}", receiver.id, message)
            else:
                late = ground.rng.uniform(0, 2.5) if ground.strikes("reordering") else 0.0
                ground.at(0.001 + late, lambda: receiver.hear(message) if life == self._life else None)
        return None if ground.strikes("lost replies") else int(heard)

    def go_down(self) -> None:
        """For up to eleven seconds; comes back as it was, empty, or as it was some time ago."""
        if not self.up:
            return
        rng = self.ground.rng
        self.up = False
        self.down_since = self.ground.now
        self._life += 1
        for process in self.processes:
            process.listening = False
        if "rewinds" in self.ground.faults:
            self.queue = dict(self._memory) if rng.random() < 0.7 else {}
        self.ground.say("Redis goes down")
        self.ground.at(rng.choice([0.1, 1.5, 5.0, 11.0]), self._come_back)

    def _come_back(self) -> None:
        self.up = True
        self.down_since = None
        self.ground.say("Redis is back with {}", self.queue)
        for process in self.processes:
            process.soon(self.ground.rng.uniform(0, 0.6), process.subscribe)


class Process:
    """What an owner and a worker have in common."""

    def __init__(self, ground: Ground, name: str) -> None:
        self.ground = ground
        self.redis = ground.redis
        self.id = name
        self.alive = True
        self.frozen = False
        self.listening = True
        self._waiting: list[Callable[[], object]] = []
        ground.redis.processes.append(self)

    @property
    def attentive(self) -> bool:
        return self.alive and self.listening and not self.frozen and self.redis.up

    def take_in(self, message: object) -> None:
        raise NotImplementedError

    def subscribe(self) -> None:
        """Listen again after having been cut off."""
        self.listening = self.redis.up

    def hear(self, message: object) -> None:
        self._when_awake(lambda: self.take_in(message))

    def soon(self, seconds: float, happen: Callable[[], object]) -> None:
        """Like `Ground.at`, but a dead process does nothing, and one that stands still does it when it goes on."""
        self.ground.at(seconds, lambda: self._when_awake(happen))

    def regularly(self, seconds: float, happen: Callable[[], object]) -> None:
        def again() -> None:
            happen()
            self.soon(seconds, again)

        self.soon(self.ground.rng.uniform(0, seconds), again)

    def _when_awake(self, happen: Callable[[], object]) -> None:
        if not self.alive:
            return
        if self.frozen:
            self._waiting.append(happen)
        else:
            happen()

    def freeze(self) -> None:
        """Stand still, as after SIGSTOP: the kernel keeps what comes in."""
        if self.alive and not self.frozen:
            self.ground.say("{} freezes", self.id)
            self.frozen = True
            self.ground.at(self.ground.rng.choice([0.5, 2.0, 5.0]), self._wake)

    def _wake(self) -> None:
        self.ground.say("{} goes on", self.id)
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for happen in waiting:
            self._when_awake(happen)

    def die(self) -> None:
        if self.alive:
            self.ground.say("{} dies", self.id)
            self.alive = False

    def grow_deaf(self) -> None:
        """Lose the subscription for a while; the command link stays."""
        if self.alive and self.listening:
            self.ground.say("{} grows deaf", self.id)
            self.listening = False
            self.soon(self.ground.rng.choice([0.1, 1.0, 4.0]), self.subscribe)
