"""Who is silent: decides that a peer is gone from what was heard, and only while our own ear is known to work.

Silence counts up to the last proof that messages reach us: one of our own, published and heard quickly, a ping for short. When
it was slow or the connection was renewed, nothing that was not heard proves anything, so every clock starts again. A stalled
Redis, a suspended process and a blocked event loop therefore never look like the death of somebody else.
Times are seconds of one monotonic clock, handed in.
"""

SLOW_PING_SECONDS = 0.75


class Liveness:
    """Silence of many peers, heard over one connection."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}
        self._proof = 0.0

    def heard(self, peer: str, now: float) -> None:
        self._heard[peer] = now

    def forget(self, peer: str) -> None:
        self._heard.pop(peer, None)

    def ping_answered(self, sent: float, answered: float) -> None:
        """A ping came back. A slow one voids all silence so far."""
        if answered - sent > SLOW_PING_SECONDS:
            self.start_again(answered)
        else:
            self._proof = max(self._proof, answered)

    def start_again(self, now: float) -> None:
        """We may have missed anything: nobody counts as silent before `now`. Saying it twice changes nothing."""
        self._proof = max(self._proof, now)
        for peer, heard in self._heard.items():
            self._heard[peer] = max(heard, now)

    def silent_seconds(self, peer: str) -> float:
        """How long the peer has been silent while it would have been heard; 0 for a peer that is not watched."""
        heard = self._heard.get(peer)
        return 0.0 if heard is None else max(0.0, self._proof - heard)

    def peers(self) -> list[str]:
        return list(self._heard)
