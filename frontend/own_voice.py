"""Does what is published reach us? This frontend publishes a number to a channel of its own, and hears it, or not.

Silence of others proves something only while we would have heard them. A ping answers for our ear alone: Redis may refuse or
hold back what is published (`CLIENT PAUSE`, a slow script, a demoted master) while pings come back at once. Our own voice takes
the way that everybody's takes.
"""

from typing import Final

import trio

from shared.redis import keys
from shared.redis.link import Link
from shared.sansio.liveness import Liveness

AGAIN_SECONDS: Final = 0.4


class OwnVoice:
    """Tells `liveness` up to when we would have heard others. `channel`: to be subscribed, and delivered to `hear`."""

    def __init__(self, link: Link, frontend_id: str, liveness: Liveness) -> None:
        self.channel = keys.own_voice_channel(frontend_id)
        self._link = link
        self._liveness = liveness
        self._number = 0
        self._first_said_at: float | None = None
        self._said_at = 0.0

    def speak(self, now: float) -> None:
        """Say the number, again if it was not heard: then what counts is when it was said first. A few times a second."""
        if now - self._said_at >= AGAIN_SECONDS:
            self._said_at = now
            if self._first_said_at is None:
                self._first_said_at = now
            self._link.post(b"PUBLISH", self.channel, str(self._number))

    def hear(self, message: bytes) -> None:
        """A message on our channel. One that comes late, or twice, says nothing any more."""
        if self._first_said_at is not None and message == b"%d" % self._number:
            self._liveness.ping_answered(self._first_said_at, trio.current_time())
            self._number += 1
            self._first_said_at = None
