"""What jobs have cost in the end: settled in batches, or at once where a caller waits for it, and never lost while we live.

1. A job that is over owes a settlement (`close`), which is never on the path of an answer. Where it gives back what the
   caller's next request may need, a slot or tokens, it goes out at once: who asks one thing after the other is not refused.
2. The watch's round sends what else is owed, many jobs in one script (`tick`), and renews the slots of those that run.
3. What Redis did not confirm is sent again. It may have been executed all the same; a settlement counts once (see
   `shared.redis.submission.settlement`), so that does no harm.
4. A frontend that leaves waits a little until nothing is owed any more (`finish`).
"""

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from frontend.open_job import OpenJob
from shared.redis.failures import RefusalKind, Refused
from shared.redis.link import Link
from shared.redis.submission.script import SUBMIT
from shared.redis.submission.settlement import RENEW, RENEW_SECONDS, SETTLE, Outcome, Settlement, renew, settle
from shared.redis.usage import row_name

_log = logging.getLogger(__name__)

BATCH: Final = 256
UNSEEN_TOKENS_PER_SECOND: Final = 50
"""What an upstream writes, about: for answers that nobody has seen."""
LOOK_SECONDS: Final = 1.0
"""How often it is looked for slots whose owners are gone."""


class Settling:
    """Everything that this frontend owes for jobs that are over, and the slots of those that are not."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._owed: list[Settlement] = []
        self._under_way = 0
        self._renewed_at = self._looked_at = -math.inf
        self._nothing_owed = trio.Event()
        self.settled = 0

    @property
    def owed(self) -> int:
        """Jobs whose settlement was not confirmed."""
        return len(self._owed) + self._under_way

    def close(self, job: OpenJob) -> None:
        """The job is over."""
        settlement = settlement_of(job)
        if settlement is not None:
            self._owed.append(settlement)
            terms = job.submission.terms
            if terms is not None and terms.reserve and self._link.up:
                self.flush()

    def came_up(self) -> None:
        """Redis is back, or there for the first time. Scripts that it does not know would run after what was posted later."""
        for script in (SUBMIT, SETTLE, RENEW):
            self._link.post(b"SCRIPT", b"LOAD", script.source)
        self._renewed_at = -math.inf
        self.flush()

    def tick(self, jobs: Sequence[OpenJob], now: float) -> None:
        """Send what is owed; renew what is due. `now`: `trio.current_time()`."""
        if not self._link.up:
            return
        self.flush()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        held = []
        if now - self._renewed_at >= RENEW_SECONDS:
            self._renewed_at = now
            held = [(job.ownership.id.hex(), job.submission.caller) for job in jobs if job.admitted]
        self._link.post_script(*renew(held), on_reply=_renewed)

    def flush(self) -> None:
        """Send what is owed, without waiting."""
        owed, self._owed = self._owed, []
        for first in range(0, len(owed), BATCH):
            batch = owed[first : first + BATCH]
            self._under_way += len(batch)
            self._link.post_script(*settle(batch), on_reply=partial(self._answered, batch))

    def _answered(self, batch: list[Settlement], reply: object) -> None:
        self._under_way -= len(batch)
        if isinstance(reply, int):
            self.settled += len(batch)
        elif isinstance(reply, Refused) and reply.kind is RefusalKind.BUG:
            _log.error("%d jobs cannot be settled: %s", len(batch), reply)
        else:
            self._owed += batch
        if not self.owed:
            self._nothing_owed.set()

    async def finish(self, seconds: float) -> None:
        """Wait until nothing is owed any more, but no longer than that."""
        with trio.move_on_after(seconds):
            self.flush()
            while self.owed:
                self._nothing_owed = trio.Event()
                await self._nothing_owed.wait()
        if self.owed:
            _log.warning("%d jobs could not be settled before the end", self.owed)


def settlement_of(job: OpenJob) -> Settlement | None:
    """How the job ended; None if it never was let in.

    An answer that broke off costs its prompt and what was sent of it. Of one that is not streamed nothing is sent before its
    end; who leaves it, again and again, must not have used the upstream for nothing, so the time that it took is counted.
    """
    if not job.at_door:
        return None
    wanted, known = job.submission, job.outcome
    outcome: Outcome = "done" if known is not None else "cancelled" if job.failure is None else "failed"
    estimated, prompt, completion = False, 0, 0
    if known is not None:
        estimated, prompt, completion = known.estimated, known.prompt_tokens, known.completion_tokens
        if not prompt + completion:  # an upstream that does not count: no answer is for nothing
            estimated, prompt = True, wanted.estimate.prompt
    elif job.accepted_at is not None or job.sent.chunks:
        estimated, prompt, completion = True, wanted.estimate.prompt, job.sent.tokens
        if outcome == "cancelled" and not wanted.stream and job.accepted_at is not None:
            unseen = (trio.current_time() - job.accepted_at) * UNSEEN_TOKENS_PER_SECOND
            completion = min(wanted.estimate.answer, int(unseen))
    return Settlement(
        job=job.ownership.id.hex(),
        caller=wanted.caller,
        outcome=outcome,
        prompt_tokens=prompt,
        completion_tokens=completion,
        estimated=estimated,
        row=row_name(wanted.caller, wanted.provider, wanted.model),
        certain=job.admitted,
    )


def _renewed(reply: object) -> None:
    if isinstance(reply, int) and reply:
        _log.warning("%d jobs were settled at their estimates, since nobody spoke of them any more", reply)
    elif isinstance(reply, Refused):
        _log.error("slots were not renewed: %s", reply)
