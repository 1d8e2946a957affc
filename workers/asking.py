"""Carrying out a plan: its questions are sent, its answers handed in, until it has made up its mind."""

from collections.abc import Generator
from typing import Final, TypeVar

from shared.errors import GatewayError
from workers.exchange import HttpReply, HttpRequest, TransportError
from workers.transports.http import HttpTransport

Result = TypeVar("Result")

REPLY_BYTES: Final = 4 * 1024 * 1024


async def ask(
    plan: Generator[HttpRequest, HttpReply, Result], transport: HttpTransport, *, timeout_seconds: float
) -> Result:
    """What the plan returns in the end. `timeout_seconds` is for each question.

    Raises `GatewayError`: the plan's own, or that an answer did not come, was cut, or is larger than `REPLY_BYTES`.
    """
    try:
        question = next(plan)
        while True:
            reply = await _fetch(question, transport, timeout_seconds)
            question = plan.send(reply)
    except StopIteration as done:
        result: Result = done.value
        return result


async def _fetch(question: HttpRequest, transport: HttpTransport, timeout_seconds: float) -> HttpReply:
    try:
        return await transport.fetch(question, limit_bytes=REPLY_BYTES, timeout_seconds=timeout_seconds)
    except TransportError as error:
        raise GatewayError(error.failure()) from None
