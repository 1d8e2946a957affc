"""What each side needs of Redis, and no more: one list, from which ACL users are written and a login is checked at start.

    frontend    queues jobs, hears frames, keeps callers' keys, limits and usage; never reads the queue as a worker does
    worker      claims jobs, publishes frames, shares credentials; knows no caller's key
    operator    `sluice doctor`, `credentials`, `keys`, `usage`: everything that the two may do, and looking

A script may do what its user may do, so commands inside scripts are in the list like all others. Lines are written for Redis
6.2, where a right to a key is one to read and to write it.

Whether a login has these rights is asked within `MULTI`: commands are checked as they are queued, and `DISCARD` forgets them.

    https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/
"""

import logging
from dataclasses import dataclass
from typing import Final

from shared.redis.failures import LinkDown, Refused
from shared.redis.link import Link

_log = logging.getLogger(__name__)

_BOTH: Final = (
    "ping client|setname select multi discard eval evalsha script|load subscribe publish"
    " set del exists expire pexpire mget sadd srem smembers time"
    " hget hset hdel hexists hgetall hincrby hkeys hlen hmget hsetnx hvals"
    " xadd xack xdel xlen xpending"
    " zadd zcard zcount zpopmin zrange zrangebyscore zrem zremrangebyscore zscore"
)
_QUEUE: Final = ("sluice:jobs:*", "sluice:waiting:*", "sluice:pace:*", "sluice:circuit:*")
_SETTLEMENT: Final = ("sluice:slots*", "sluice:settled:*", "sluice:caller:*", "sluice:usage:*")


@dataclass(frozen=True)
class Side:
    """`commands`: in lower case, `command|subcommand` where only that is needed. `keys`, `channels`: patterns."""

    name: str
    commands: tuple[str, ...]
    keys: tuple[str, ...]
    channels: tuple[str, ...]


FRONTEND: Final = Side(
    "frontend",
    tuple(sorted(f"{_BOTH} get hstrlen lpush ltrim pttl pubsub|numsub xrange".split())),
    (
        *_QUEUE, *_SETTLEMENT, "sluice:alive*", "sluice:models:*", "sluice:credentials:*", "sluice:callers*",
        "sluice:answers:*", "sluice:dead",
    ),
    ("sluice:frontend:*", "sluice:worker:*", "sluice:callers:news"),
)  # fmt: skip
WORKER: Final = Side(
    "worker",
    tuple(sorted(f"{_BOTH} xautoclaim xgroup|create xreadgroup".split())),
    (*_QUEUE, *_SETTLEMENT, "sluice:alive*", "sluice:models:*", "sluice:credentials:*"),
    ("sluice:frontend:*", "sluice:worker:*", "sluice:credentials:*"),
)
OPERATOR: Final = Side(
    "operator",
    tuple(sorted({*FRONTEND.commands, *WORKER.commands, "info", "lrange"})),
    tuple(dict.fromkeys((*FRONTEND.keys, *WORKER.keys))),
    tuple(dict.fromkeys((*FRONTEND.channels, *WORKER.channels))),
)
SIDES: Final = (FRONTEND, WORKER, OPERATOR)

_ARGUMENTS: Final[dict[str, str]] = {
    "ping": "", "client|setname": "sluice", "select": "0", "multi": "", "discard": "", "time": "", "info": "",
    "eval": "x 0", "evalsha": "x 0", "script|load": "x", "pubsub|numsub": "",
    "set": "K x", "get": "K", "del": "K", "exists": "K", "expire": "K 1", "pexpire": "K 1", "mget": "K", "sadd": "K x",
    "srem": "K x", "smembers": "K", "hget": "K x", "hset": "K x x", "hdel": "K x", "hexists": "K x", "hgetall": "K",
    "hincrby": "K x 1", "hkeys": "K", "hlen": "K", "hmget": "K x", "hsetnx": "K x x", "hvals": "K",
    "hstrlen": "K x", "pttl": "K", "lpush": "K x",
    "lrange": "K 0 1", "ltrim": "K 0 1", "xadd": "K * x x", "xack": "K x 0-1", "xdel": "K 0-1", "xlen": "K",
    "xpending": "K x", "xrange": "K - +", "xautoclaim": "K x x 1 0", "xgroup|create": "K x 0",
    "xreadgroup": "GROUP x x STREAMS K >", "zadd": "K 1 x", "zcard": "K", "zcount": "K 0 1", "zpopmin": "K",
    "zrange": "K 0 1", "zrangebyscore": "K 0 1", "zrem": "K x", "zremrangebyscore": "K 0 1", "zscore": "K x",
    "publish": "C x", "subscribe": "C",
}  # fmt: skip
"""An example of what may follow each command: K is a key, C a channel. They are never executed."""


def acl_line(side: Side, password: str = "<password>") -> str:
    """The command that makes the side's user, named `sluice-<side>`: nothing is allowed but what stands there."""
    words = ["ACL SETUSER", f"sluice-{side.name}", "reset resetchannels on", f">{password}"]
    words += [f"~{pattern}" for pattern in side.keys] + [f"&{pattern}" for pattern in side.channels]
    return " ".join([*words, *(f"+{command}" for command in side.commands)])


async def missing_rights(link: Link, side: Side) -> list[str]:
    """What the link's login may not do and the side must: commands, keys, channels. Nothing is changed by asking."""
    asked = questions(side)
    try:
        replies = await link.many([("MULTI",), *(command for _, command in asked), ("DISCARD",)], raise_refusals=False)
    except LinkDown as down:
        _log.warning("the rights of the Redis login could not be checked: %s", down)
        return []
    if _refuses(replies[0]) or _refuses(replies[-1]):
        return [name for name, reply in (("multi", replies[0]), ("discard", replies[-1])) if _refuses(reply)]
    return [name for (name, _), reply in zip(asked, replies[1:-1], strict=True) if _refuses(reply, name)]


async def require_rights(link: Link, side: Side) -> None:
    """Raises `Refused` with all that is missing."""
    missing = await missing_rights(link, side)
    if missing:
        raise Refused(
            f"NOPERM the Redis user of this {side.name} lacks rights: {', '.join(missing)}"
            " (`sluice redis-acl` prints users that have them)"
        )


def questions(side: Side) -> list[tuple[str, tuple[str, ...]]]:
    """Each command once, each key and channel once, with a name for people."""
    key, channel = side.keys[0], side.channels[0]
    asked = [
        (command, _example(command, key, channel)) for command in side.commands if command not in ("multi", "discard")
    ]
    asked += [(f"key {pattern}", _example("exists", pattern, channel)) for pattern in side.keys]
    return asked + [(f"channel {pattern}", _example("publish", key, pattern)) for pattern in side.channels]


def _example(command: str, key: str, channel: str) -> tuple[str, ...]:
    example = {"K": key.replace("*", "x"), "C": channel.replace("*", "x")}
    return (*command.split("|"), *(example.get(word, word) for word in _ARGUMENTS[command].split()))


def _refuses(reply: object, name: str = "") -> bool:
    """For lack of this very right. Other refusals, such as that of a full server, say nothing about rights.

    A command whose example has a forbidden key is refused as well; the words tell what it was refused for.
    """
    if not isinstance(reply, Refused) or reply.code != "NOPERM":
        return False
    kind, separator, _ = name.partition(" ")
    return kind in str(reply).replace("to run", "") if separator else "to run" in str(reply)
