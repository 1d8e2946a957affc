"""What the connections of one link or subscription count, over all of its reconnects."""

from shared.measuring import Distribution
from shared.metrics import INSTANTS


class Counts:
    """Plain numbers that only grow; whoever does something counts it. `round_trips`: seconds from a command to its reply."""

    __slots__ = (
        "bytes_received", "bytes_sent", "callback_errors", "commands", "connections", "round_trips", "sends", "turned_away",
    )  # fmt: skip

    def __init__(self) -> None:
        self.connections = 0
        self.commands = 0
        self.turned_away = 0
        self.sends = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.round_trips = Distribution(INSTANTS)
        self.callback_errors = 0
