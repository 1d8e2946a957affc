"""What this frontend saw in the last minute, by provider: a ring of seconds that its advertisement carries to every dashboard.

Nothing is counted on the way of a token. Once a second a look at the open jobs says how many chunks each has received since the
last look, and the end of a request sets that right with the tokens that the upstream counted. So the sum is exact, and the rate
of the moment takes a chunk for a token.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import trio

from frontend.edge import Visit
from frontend.open_job import OpenJob
from shared.schema.statistics import WINDOW_SECONDS, Flow, step

RATE_SECONDS: Final = 5
"""What the tokens per second are the mean of."""
HEAD_FRAMES: Final = 2
"""Frames of an attempt before its first chunk: started, accepted."""
MOST_PROVIDERS: Final = 200
API: Final = "/v1/"


@dataclass(slots=True)
class _Second:
    at: int
    requests: int = 0
    left: int = 0
    tokens: int = 0
    first_token: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class Statistics:
    """The last minute of one frontend. Requests that reached no provider count under the empty name."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[_Second]] = {}
        self._counted: dict[str, int] = {}

    def ended(self, visit: Visit) -> None:
        """A request is over, however that came about."""
        counted = self._counted.pop(visit.request_id, 0)
        if not visit.path.startswith(API):
            return
        facts = visit.facts
        second = self._now(str(facts.get("provider", "")))
        second.requests += 1
        tokens = facts.get("completion_tokens")
        if isinstance(tokens, int):
            second.tokens += tokens - counted
        first_token_ms = facts.get("first_token_ms")
        if isinstance(first_token_ms, float) and facts.get("stream"):
            second.first_token[step(first_token_ms / 1000)] += 1
        if "error" in facts:
            second.errors[str(facts["error"])] += 1
        elif not visit.complete:
            second.left += 1
        elif visit.status >= 400:
            second.errors[str(visit.status)] += 1

    def flows(self, jobs: Iterable[OpenJob]) -> dict[str, Flow]:
        """What there is to tell, after a look at the open jobs; to be called about once a second."""
        opened: Counter[str] = Counter()
        for job in jobs:
            opened[job.submission.provider] += 1
            if job.submission.stream:
                self._look_at(job)
        now = int(trio.current_time())
        for provider, seconds in list(self._seconds.items()):
            while seconds and seconds[0].at <= now - WINDOW_SECONDS:
                seconds.popleft()
            if not seconds:
                del self._seconds[provider]
        return {
            provider: _flow(opened[provider], self._seconds.get(provider, ()), now)
            for provider in {*opened, *self._seconds}
        }

    def _look_at(self, job: OpenJob) -> None:
        request_id = job.submission.request_id
        received = max(0, job.ownership.received.next - HEAD_FRAMES)
        counted = self._counted.get(request_id, 0)
        if received > counted:
            self._counted[request_id] = received
            self._now(job.submission.provider).tokens += received - counted

    def _now(self, provider: str) -> _Second:
        if provider not in self._seconds and len(self._seconds) >= MOST_PROVIDERS:
            provider = ""
        seconds = self._seconds.setdefault(provider, deque())
        now = int(trio.current_time())
        if not seconds or seconds[-1].at != now:
            seconds.append(_Second(now))
        return seconds[-1]


def _flow(opened: int, seconds: Iterable[_Second], now: int) -> Flow:
    first_token: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    requests = left = tokens = lately = 0
    for second in seconds:
        requests += second.requests
        left += second.left
        tokens += second.tokens
        lately += second.tokens if second.at > now - RATE_SECONDS else 0
        first_token += second.first_token
        errors += second.errors
    return Flow(
        open=opened,
        requests=requests,
        left=left,
        tokens=max(0, tokens),
        tokens_per_second=round(max(0, lately) / RATE_SECONDS, 1),
        first_token=dict(first_token),
        errors=dict(errors),
    )
