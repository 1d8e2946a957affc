"""The door as a test uses it: a real Redis, a clock that the test sets, and one caller unless it says otherwise."""

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import redis

from shared.redis import keys
from shared.redis.script import Script
from shared.redis.submission.limits import Terms
from shared.redis.submission.queue import ScriptCall
from shared.redis.submission.script import Ask, Queued, Refusal, answer_to, submission
from shared.redis.submission.settlement import Settlement, renew, settle
from shared.redis.usage import UsageRow, row_name, rows_of

CALLER = "0123abcd"
NO_QUEUE = {"patience_ms": 1e12, "most_waiting": 1_000_000}
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC).timestamp() * 1000


@dataclass
class Door:
    """`now`: milliseconds."""

    client: redis.Redis
    now: float = NOON
    names: "itertools.count[int]" = field(default_factory=itertools.count)

    def wait(self, seconds: float, *, alone: bool = False) -> None:
        """Time passes, and other frontends renew what is theirs, unless there are none or time has jumped."""
        self.now += seconds * 1000
        if not alone:
            self.client.hset(keys.SLOTS_PULSE.decode(), mapping={"at": self.now, "quiet": 0})

    def grant(self, caller: str = CALLER, revision: int = 1) -> None:
        """The key exists."""
        self.client.hset(keys.CALLER_REVISIONS.decode(), caller, revision)

    def ask(self, terms: Terms | None = None, caller: str = CALLER, **fields) -> Queued | Refusal:
        """Submit a job; without `job` it is a new one."""
        job = fields.pop("job", None) or self.name()
        ask = Ask(
            job=job, name=f"{job}.1", caller=caller, whose=caller, model="m", terms=terms,
            row=row_name(caller, "echo", "m"), now_ms=self.now, **(NO_QUEUE | fields),
        )  # fmt: skip
        return answer_to(self.run(submission("echo", ask, b"sealed")))

    def name(self) -> str:
        return f"{next(self.names):032x}"

    def settle(self, job: str, outcome: str = "done", prompt: int = 0, completion: int = 0, **fields) -> int:
        """1 if it counted."""
        caller = fields.pop("caller", CALLER)
        end = Settlement(
            job, caller, outcome, prompt, completion, fields.pop("estimated", False),
            row_name(caller, "echo", fields.pop("model", "m")), **fields,
        )  # fmt: skip
        return self.run(settle([end], self.now))

    def renew(self, *jobs: str, caller: str = CALLER) -> int:
        """How many slots of others had expired."""
        return self.run(renew([(job, caller) for job in jobs], self.now))

    def usage(self, day: str = "2026-03-14") -> list[UsageRow]:
        return rows_of(day, self.client.hgetall(keys.usage(day)).items())

    def totals(self, caller: str = CALLER) -> dict[bytes, bytes]:
        return self.client.hgetall(f"sluice:caller:{{{caller}}}:tokens")

    def everything(self) -> dict[bytes, bytes | None]:
        """All that is kept, to see whether anything has changed."""
        return {name: self.client.dump(name) for name in self.client.scan_iter()}

    def run(self, call: ScriptCall) -> object:
        script, names, arguments = call
        assert isinstance(script, Script)
        try:
            return self.client.evalsha(script.digest, len(names), *names, *arguments)
        except redis.exceptions.NoScriptError:
            return self.client.eval(script.source, len(names), *names, *arguments)


def left(answer: Queued | Refusal) -> dict[str, object]:
    assert answer.limits is not None
    return msgspec.structs.asdict(answer.limits)
