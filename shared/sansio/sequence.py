"""Both ends of one attempt's numbered frames: nothing is lost, doubled or reordered on a road that loses, doubles and reorders.

The worker's `Sender` numbers frames from 0 and keeps each one until the owner has consumed it. The owner's `Receiver` hands out
frames in order, once. It notices a hole when a later frame arrives, or when the worker's report says that more was sent than
has come, and then asks for everything from the hole on. It asks once for each hole; the worker's next report, a second
later, makes it ask again, so a lost question or a lost answer costs a second and not the stream.
"""

from typing import Generic, TypeVar

T = TypeVar("T")

HELD_FRAMES = 4096
"""How many frames wait behind a hole; what lies beyond is dropped, since the hole's repair brings it again."""


class Receiver(Generic[T]):
    """The owner's end. `next` is the number of the frame that is due, so also the count of frames handed out."""

    __slots__ = ("_asked", "_held", "next")

    def __init__(self) -> None:
        self.next = 0
        self._held: dict[int, T] | None = None
        self._asked = -1

    def accept(self, seq: int, frame: T) -> list[T]:
        """The frames that are due now, in order; empty for a duplicate or a frame behind a hole."""
        if seq == self.next:
            self.next += 1
            if self._held is None:
                return [frame]
            return [frame, *self._release()]
        if seq > self.next:
            if self._held is None:
                self._held = {}
            if len(self._held) < HELD_FRAMES:
                self._held[seq] = frame
        return []

    def _release(self) -> list[T]:
        held = self._held
        assert held is not None
        due = []
        while (frame := held.pop(self.next, None)) is not None:
            due.append(frame)
            self.next += 1
        if not held:
            self._held = None
        return due

    @property
    def has_hole(self) -> bool:
        return self._held is not None

    def question(self) -> int | None:
        """Where to ask for a resend because of a hole, or None when there is none or it was asked about already."""
        if self._held is None or self._asked == self.next:
            return None
        self._asked = self.next
        return self.next

    def reported(self, next_seq: int) -> int | None:
        """The worker says that `next_seq` frames exist: where to ask for a resend, or None when nothing is missing."""
        if next_seq <= self.next:
            return None
        self._asked = self.next
        return self.next


class Sender(Generic[T]):
    """The worker's end. `retained_bytes` counts what the owner has not consumed; the worker stops reading above a limit."""

    __slots__ = ("_first", "_frames", "_sizes", "retained_bytes")

    def __init__(self) -> None:
        self._first = 0
        self._frames: list[T] = []
        self._sizes: list[int] = []
        self.retained_bytes = 0

    @property
    def next(self) -> int:
        """The number that the next frame will have."""
        return self._first + len(self._frames)

    def keep(self, frame: T, size: int) -> None:
        """Retain the frame whose number was `next`; `size` in bytes."""
        self._frames.append(frame)
        self._sizes.append(size)
        self.retained_bytes += size

    def consumed(self, below: int) -> None:
        """Forget every frame numbered below `below`. Stale and absurd numbers do nothing."""
        count = below - self._first
        if not 0 < count <= len(self._frames):
            return
        self.retained_bytes -= sum(self._sizes[:count])
        del self._frames[:count]
        del self._sizes[:count]
        self._first = below

    def since(self, seq: int) -> list[T]:
        """The retained frames from `seq` on, in order. Frames that were consumed are gone, and nobody misses them."""
        return self._frames[max(0, seq - self._first) :]
