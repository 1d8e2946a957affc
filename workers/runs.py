"""Starts a run whose answer comes as events of a shared session: first the session, then the run, then the run's name."""

from typing import TYPE_CHECKING, Final

from shared.errors import GatewayError
from workers.exchange import SocketRefused, TransportError
from workers.provider import Provider, SocketIOStream
from workers.transports.http import HttpTransport
from workers.transports.seats import Seat

if TYPE_CHECKING:
    from workers.transports.sessions import Sessions

REPLY_BYTES: Final = 256 * 1024


async def start_run(
    exchange: SocketIOStream,
    provider: Provider,
    sessions: "Sessions",
    transport: HttpTransport,
    *,
    timeout_seconds: float,
) -> Seat:
    """A seat that hears the run, which the upstream has accepted.

    Raises `GatewayError`: what the upstream refused, the socket or the run, in the provider's words; or that it cannot be
    reached. If this is cancelled in between, the run that may have been started speaks to nobody.
    """
    try:
        seat = await sessions.seat(exchange.session, exchange.owner)
        try:
            seat.began = True
            reply = await transport.fetch(exchange.start, limit_bytes=REPLY_BYTES, timeout_seconds=timeout_seconds)
            if reply.status != 200:
                seat.began = False
                raise GatewayError(provider.refusal(reply))
            seat.claim(exchange.execution(reply))
        except BaseException:
            seat.close()
            raise
    except SocketRefused as refused:
        raise GatewayError(provider.refusal(refused.reply)) from None
    except TransportError as error:
        raise GatewayError(error.failure()) from None
    return seat
