"""What the connections of one link or subscription count, over all of its reconnects."""


class Counts:
    """Plain numbers that only grow; whoever does something counts it."""

    __slots__ = ("bytes_received", "bytes_sent", "callback_errors", "commands", "connections", "sends", "turned_away")

    def __init__(self) -> None:
        self.connections = 0
        self.commands = 0
        self.turned_away = 0
        self.sends = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.callback_errors = 0
