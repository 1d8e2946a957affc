"""An outbox whose link is paper: what it would publish can be read, and answered as a test likes."""

from contextlib import contextmanager

import msgspec
import pytest
import trio

from shared.schema.job import PROTOCOL, Job, Parcel
from shared.sealing import Seal
from workers.outbox import Outbox

SEAL = Seal(["a secret key for tests only, 32 characters"])
STARTED, ACCEPTED, CHUNK, DONE, FAILED = range(5)


def a_job(number=1, *, attempt=1, owner="f", budget_seconds=600.0):
    return Job(
        PROTOCOL, bytes([number]) * 16, attempt, owner, "chat", "echo", "echo", "echo", True, False, budget_seconds, b"{}", "r"
    )  # fmt: skip


class Paper:
    """A link that only writes down what is published; a test answers when it likes, or lets `answer` do it at once."""

    def __init__(self, answer=None):
        self.published = []
        self.answer = answer
        self._replies = []

    def post(self, command, channel, message, *, on_reply):
        assert command == b"PUBLISH"
        self.published.append((channel, msgspec.msgpack.decode(SEAL.open(message, channel), type=Parcel)))
        if self.answer is None:
            self._replies.append(on_reply)
        else:
            on_reply(self.answer)

    def reply(self, reply=1):
        self._replies.pop(0)(reply)

    @property
    def parcels(self):
        return [parcel for _, parcel in self.published]

    def frames(self):
        """`(job, attempt, seq, kind, payload)` of all parcels, the job by its first byte."""
        return [(job[0], attempt, *rest) for parcel in self.parcels for job, attempt, *rest in parcel.frames]

    def reports(self):
        return [
            [(job[0], attempt, next_seq) for job, attempt, next_seq in parcel.running]
            for parcel in self.parcels
            if parcel.running is not None
        ]


class Told:
    """What the attempt of a retained job is told."""

    def __init__(self):
        self.gone = 0

    def __call__(self):
        self.gone += 1


def an_outbox(answer=1, **options):
    paper = Paper(answer)
    return paper, Outbox(paper, SEAL, "w", **options)


@contextmanager
def no_time(seconds=0.0):
    began = trio.current_time()
    yield
    assert trio.current_time() - began == pytest.approx(seconds, abs=1e-6)
