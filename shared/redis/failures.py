"""Every way in which Redis can fail us, as one small tree.

    RedisError
    ├── LinkDown    no answer: not connected, connection lost, deadline passed
    └── Refused     an answer, and it is no: `.code` is the first word of it, `.kind` says what to do about it

A command that failed with `LinkDown` has not been executed if `may_have_executed` is false. If it is true, nobody can know:
a server that was too slow for us executes the command all the same. So whatever is repeated must be safe to repeat.
"""

import re
from enum import StrEnum
from functools import cached_property


class RedisError(Exception):
    """A command got no reply, or an error for a reply."""


class LinkDown(RedisError):
    """No reply: the link is not connected, was lost, or did not answer before the deadline."""

    def __init__(self, reason: str, *, may_have_executed: bool = False) -> None:
        super().__init__(reason)
        self.may_have_executed = may_have_executed


class RefusalKind(StrEnum):
    """What a refusal asks for."""

    TRANSIENT = "transient"  # repeat the same command after a pause
    WRONG_NODE = "wrong_node"  # not a master any more: connect anew, the name may lead elsewhere by then
    REPRIME = "reprime"  # the server has lost a script or a consumer group: create it and repeat
    CAPACITY = "capacity"  # memory or disk is full: refuse new work, go on with what frees some
    CONFIGURATION = "configuration"  # credentials or rights are wrong: only an operator can help
    BUG = "bug"  # anything else is a mistake of ours in this one command


class Refused(RedisError):
    """The server answered with an error; nothing else is wrong with the connection."""

    @cached_property
    def code(self) -> str:
        """First word of the text, such as `NOSCRIPT`; `ERR` for most errors that have no word of their own."""
        return str(self).partition(" ")[0]

    @cached_property
    def kind(self) -> RefusalKind:
        return _classify(str(self))


_BY_CODE = {
    "LOADING": RefusalKind.TRANSIENT,
    "BUSY": RefusalKind.TRANSIENT,
    "TRYAGAIN": RefusalKind.TRANSIENT,
    "MASTERDOWN": RefusalKind.TRANSIENT,
    "CLUSTERDOWN": RefusalKind.TRANSIENT,
    "NOREPLICAS": RefusalKind.TRANSIENT,
    "READONLY": RefusalKind.WRONG_NODE,
    "MOVED": RefusalKind.WRONG_NODE,
    "ASK": RefusalKind.WRONG_NODE,
    "UNBLOCKED": RefusalKind.WRONG_NODE,
    "NOSCRIPT": RefusalKind.REPRIME,
    "NOGROUP": RefusalKind.REPRIME,
    "OOM": RefusalKind.CAPACITY,
    "MISCONF": RefusalKind.CAPACITY,
    "NOAUTH": RefusalKind.CONFIGURATION,
    "WRONGPASS": RefusalKind.CONFIGURATION,
    "NOPERM": RefusalKind.CONFIGURATION,
    "DENIED": RefusalKind.CONFIGURATION,
}

_BY_TEXT = (
    ("ERR max number of clients", RefusalKind.TRANSIENT),
    ("ERR no such key", RefusalKind.REPRIME),
    ("ERR The XGROUP subcommand requires the key to exist", RefusalKind.REPRIME),
    ("ERR AUTH <password> called without any password", RefusalKind.CONFIGURATION),
    ("ERR DB index is out of range", RefusalKind.CONFIGURATION),
    ("ERR invalid DB index", RefusalKind.CONFIGURATION),
)

# Before Redis 7 an error inside a script arrives as "ERR Error running script (call to f_…): @user_script:1:
# @user_script: 1: -OOM command not allowed …", and only the innermost word tells what was wrong.
_INSIDE_SCRIPT = re.compile(r"@user_script: ?\d+: -?([A-Z]{2,})\b")


def _classify(text: str) -> RefusalKind:
    kind = _BY_CODE.get(text.partition(" ")[0])
    if kind is not None:
        return kind
    for beginning, kind in _BY_TEXT:
        if text.startswith(beginning):
            return kind
    inner = _INSIDE_SCRIPT.search(text)
    return _BY_CODE.get(inner[1], RefusalKind.BUG) if inner else RefusalKind.BUG
