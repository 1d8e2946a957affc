"""What `/metrics` says of a process's connections to Redis."""

from shared.measuring import Measures
from shared.redis.link import Link
from shared.redis.subscription import Subscription


def measure_redis(measures: Measures, link: Link, subscription: Subscription) -> None:
    """Tell of the link for commands and of the connection that hears the channels."""

    def up() -> dict[tuple[str, ...], float]:
        return {("commands",): link.up, ("channel",): subscription.subscribed}

    def connects() -> dict[tuple[str, ...], float]:
        return {("commands",): link.statistics().connections, ("channel",): subscription.connections}

    def channel_round_trip() -> dict[tuple[str, ...], float]:
        ping = subscription.last_ping
        return {} if ping is None else {(): ping.round_trip_seconds}

    measures.read("sluice_redis_up", up)
    measures.read("sluice_redis_connects_total", connects)
    measures.read("sluice_redis_channel_round_trip_seconds", channel_round_trip)
    measures.take("sluice_redis_round_trip_seconds", link.round_trips)
    measures.read("sluice_redis_commands_total", lambda: link.statistics().commands)
    measures.read("sluice_redis_commands_turned_away_total", lambda: link.statistics().turned_away)
    measures.read("sluice_redis_commands_outstanding", lambda: link.statistics().outstanding)
    measures.read("sluice_redis_sends_total", lambda: link.statistics().sends)
    measures.read("sluice_redis_sent_bytes_total", lambda: link.statistics().bytes_sent)
    measures.read("sluice_redis_received_bytes_total", lambda: link.statistics().bytes_received)
    measures.read("sluice_callback_errors_total", lambda: link.statistics().callback_errors)
