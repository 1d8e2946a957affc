"""Jobs, frames and orders: what crosses Redis between a frontend and a worker, in msgpack, sealed.

A job goes through the provider's stream, from the owner (a frontend) to whichever worker claims it. Frames go back through
the owner's channel, many jobs in one message. Orders go from the owner to one worker through the worker's channel.
"""

from typing import Final

import msgspec

from shared.schema.caller import MASTER

PROTOCOL: Final = 1
"""Raised when a frontend and a worker of different versions could misunderstand each other. First field of every job."""


class Job(msgspec.Struct, array_like=True, frozen=True):
    """One caller's request on its way to a worker.

    `id`: 16 random bytes. `owner`: the frontend's id. `budget_seconds`: what is left of the total deadline; a relative time,
    because the clocks of two machines need not agree. `body`: the request as the caller sent it, checked to be JSON.
    `credential`: the caller's own upstream key, where the provider takes callers' keys. `caller`: the id of the key that is
    charged. `traceparent`: the W3C trace context of the request, if it is traced. Fields are only ever added at the end.
    """

    protocol: int
    id: bytes
    attempt: int
    owner: str
    endpoint: str
    provider: str
    model: str
    asked_model: str
    stream: bool
    include_usage: bool
    budget_seconds: float
    body: bytes
    request_id: str
    credential: str | None = None
    caller: str = MASTER
    traceparent: str | None = None


class JobHead(msgspec.Struct, array_like=True, frozen=True):
    """What a job of any protocol begins with, so that whoever does not speak it can tell its owner."""

    protocol: int
    id: bytes
    attempt: int
    owner: str


class FrameKind:
    """`STARTED`: a worker has the job. `ACCEPTED`: the upstream said yes, payload `Accepted` or nothing. `CHUNK`: JSON for the
    caller. `DONE`: the end, all well, payload `Outcome`. `FAILED`: the end, payload `Failure`."""

    STARTED: Final = 0
    ACCEPTED: Final = 1
    CHUNK: Final = 2
    DONE: Final = 3
    FAILED: Final = 4


Frame = tuple[bytes, int, int, int, bytes]
"""`(job, attempt, seq, kind, payload)`; `seq` counts from 0 without holes within one attempt of one worker."""

Running = tuple[bytes, int, int]
"""`(job, attempt, next_seq)`: an attempt that the worker still answers for, and the `seq` that its next frame will have."""


class Accepted(msgspec.Struct, array_like=True, frozen=True):
    """What there is to say of a call that the upstream took. `dropped`: parameters that it went without."""

    dropped: list[str] = []


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """What a finished attempt cost. Times in seconds; `first_token_seconds` from the claim."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    first_token_seconds: float | None = None
    upstream_request_id: str | None = None


class Parcel(msgspec.Struct, array_like=True, frozen=True):
    """One message on a frontend's channel. `running` is set once a second and lists all attempts for this frontend."""

    worker: str
    frames: list[Frame]
    running: list[Running] | None = None


class OrderKind:
    """`CANCEL`: stop the attempt. `RESEND`: send again from `seq` on. `CONSUMED`: every frame below `seq` has reached the
    caller, forget it and send on. `FINISHED`: the owner has the last frame, forget the attempt."""

    CANCEL: Final = 0
    RESEND: Final = 1
    CONSUMED: Final = 2
    FINISHED: Final = 3


Order = tuple[int, bytes, int, int]
"""`(kind, job, attempt, seq)`."""


class Orders(msgspec.Struct, array_like=True, frozen=True):
    """One message on a worker's channel."""

    frontend: str
    orders: list[Order]
