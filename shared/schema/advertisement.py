"""Advertisements: what a live process says of itself, once a second, as JSON under a key that expires."""

from typing import Final

import msgspec

from shared.schema.job import PROTOCOL
from shared.schema.statistics import Flow

MOST_MODELS: Final = 5000
"""Of one provider that are listed."""


class Model(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that a worker serves. `id` is the public name; `created` in Unix seconds."""

    id: str
    created: int = 0
    owned_by: str = ""
    context_tokens: int | None = None


class WorkerAdvertisement(msgspec.Struct, frozen=True):
    """`room`: how many more jobs it takes now. `accepts_any_model`: names that are not listed may be passed on to the
    upstream. `caller_credentials`: the caller's key is the upstream's key. `sealing_key`: fingerprint of the key that the
    process seals with; `opens`: of further keys that it understands, while keys are rotated."""

    id: str
    provider: str
    models: list[Model]
    endpoints: list[str]
    room: int
    running: int
    version: str
    started: float
    sealing_key: str
    accepts_any_model: bool = False
    caller_credentials: bool = False
    draining: bool = False
    total_seconds: float = 600.0
    protocol: int = PROTOCOL
    opens: list[str] = []


class FrontendAdvertisement(msgspec.Struct, frozen=True):
    """`streams`: callers that are being answered now. `flows`: what it saw in the last minute, by provider; the empty name is
    for requests that reached none."""

    id: str
    address: str
    streams: int
    version: str
    started: float
    sealing_key: str
    draining: bool = False
    protocol: int = PROTOCOL
    flows: dict[str, Flow] = {}
