"""What one frontend has seen in the last minute, small enough to travel in its advertisement; and the sum of several.

Times to the first token travel as a histogram of steps that grow by `GROWTH`: histograms of several processes can be added,
which quantiles cannot, and a quantile read from the sum is wrong by less than a step.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec

WINDOW_SECONDS: Final = 60
GROWTH: Final = 1.1
SHORTEST_SECONDS: Final = 0.001

K = TypeVar("K", int, str)

Histogram = dict[int, int]
"""Step → how many values fell into it."""


class Flow(msgspec.Struct, frozen=True, omit_defaults=True):
    """Requests for one provider: `open` are being answered now, everything else is of the last minute.

    `requests` have ended; `left` are those of them whose caller went away; `errors` counts the others that went wrong, by the
    code that the caller was told. `tokens` are of answers; `tokens_per_second` of the last few seconds.
    """

    open: int = 0
    requests: int = 0
    left: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    first_token: Histogram = {}
    errors: dict[str, int] = {}


def step(seconds: float) -> int:
    """The histogram's step that a time falls into."""
    return max(0, math.ceil(math.log(max(seconds, SHORTEST_SECONDS) / SHORTEST_SECONDS, GROWTH)))


def quantile(histogram: Histogram, share: float) -> float | None:
    """The time in seconds that `share` of the values do not exceed; None if there are no values."""
    wanted = share * sum(histogram.values())
    if not wanted:
        return None
    seen = 0
    for position in sorted(histogram):
        seen += histogram[position]
        if seen >= wanted:
            break
    return float(SHORTEST_SECONDS * GROWTH**position)


def total(flows: Iterable[Flow]) -> Flow:
    """What several flows are together."""
    flows = list(flows)
    return Flow(
        open=sum(flow.open for flow in flows),
        requests=sum(flow.requests for flow in flows),
        left=sum(flow.left for flow in flows),
        tokens=sum(flow.tokens for flow in flows),
        tokens_per_second=round(sum(flow.tokens_per_second for flow in flows), 1),
        first_token=_added(flow.first_token for flow in flows),
        errors=_added(flow.errors for flow in flows),
    )


def _added(counts: "Iterable[Mapping[K, int]]") -> "dict[K, int]":
    together: dict[K, int] = {}
    for count in counts:
        for key, number in count.items():
            together[key] = together.get(key, 0) + number
    return together
