"""Rights in Redis: the list has every command of the code and no other, its users work, and what is missing is named."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import redis
import trio

from shared.redis import keys
from shared.redis.address import Address
from shared.redis.failures import Refused
from shared.redis.link import Link
from shared.redis.rights import (
    FRONTEND,
    OPERATOR,
    SIDES,
    WORKER,
    Side,
    acl_line,
    missing_rights,
    questions,
    require_rights,
)
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[3]
INSIDE_SCRIPTS = re.compile(r"redis\.p?call\(\s*'([A-Z]+)'")
WITH_SUBCOMMAND = {"CLIENT", "PUBSUB", "SCRIPT", "XGROUP"}
NO_COMMANDS = {"frontend.api.samples", "frontend.api.reference"}  # HTTP methods look the same
ALWAYS_ALLOWED = {"auth"}
PASSWORD = "of-a-test"


def used_by(module: str) -> set[str]:
    """The commands in the source of a module and of everything that it imports, in the notation of the list."""
    seen: set[str] = set()
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name not in seen and path.exists():
            seen.add(name)
            tree = ast.parse(path.read_text())
            waiting += _imports(tree)
            if name not in NO_COMMANDS and name != "shared.redis.rights":
                found |= set(_commands(tree))
    return found - ALWAYS_ALLOWED


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _commands(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (command.lower() for command in INSIDE_SCRIPTS.findall(node.value))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("call", "post", "_send", "submit"):
                yield from _words(node.args)
        elif isinstance(node, ast.Tuple):
            yield from _words(node.elts)


def _words(nodes: list[ast.expr]) -> Iterator[str]:
    words = [node.value for node in nodes[:2] if isinstance(node, ast.Constant)]
    texts = [word.decode() if isinstance(word, bytes) else word for word in words if isinstance(word, bytes | str)]
    if texts and isinstance(nodes[0], ast.Constant) and re.fullmatch("[A-Z]{2,}", texts[0]):
        command = texts[0].lower()
        if command not in ("get", "post", "put", "delete") or isinstance(nodes[0].value, bytes):
            yield f"{command}|{texts[1].lower()}" if texts[0] in WITH_SUBCOMMAND else command


@pytest.mark.parametrize(("module", "side"), [("frontend.__main__", FRONTEND), ("workers.__main__", WORKER)])
def test_the_list_has_what_the_code_uses_and_nothing_else(module: str, side: Side) -> None:
    asks = {"multi", "discard"}  # of the check itself
    assert sorted(used_by(module) - set(side.commands)) == [], "the code uses what the list does not allow"
    assert sorted(set(side.commands) - used_by(module) - asks) == [], "the list allows what the code does not use"


def test_every_documented_key_and_channel_is_somebodys() -> None:
    names = re.findall(r"^\| `((?:sluice|…):[^`]+)` \|", keys.__doc__ or "", re.M)
    for name in (name for name in names if not name.startswith("…")):
        assert any(fnmatchcase(name, pattern) for side in SIDES for pattern in (*side.keys, *side.channels)), name


def make_user(server: RedisServer, side: Side, without: str = "") -> Address:
    line = acl_line(side, PASSWORD)
    if without:
        assert f" {without}" in line
        line = line.replace(f" {without}", "", 1)
    server.client.execute_command(*line.split())
    return Address.parse(f"redis://sluice-{side.name}:{PASSWORD}@127.0.0.1:{server.port}/0")


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
async def test_a_user_made_from_the_list_lacks_nothing(
    redis_server: RedisServer, nursery: trio.Nursery, side: Side
) -> None:
    link = Link(make_user(redis_server, side))
    await nursery.start(link.run)
    before = redis_server.client.dbsize()
    assert await missing_rights(link, side) == []
    await require_rights(link, side)
    assert redis_server.client.dbsize() == before, "asking changes nothing"
    nursery.cancel_scope.cancel()


async def test_every_question_is_one_that_redis_understands(redis_server: RedisServer, nursery: trio.Nursery) -> None:
    """A command with too few words is refused before anybody looks at rights."""
    link = Link(make_user(redis_server, OPERATOR))
    await nursery.start(link.run)
    commands = [command for side in SIDES for _, command in questions(side)]
    replies = await link.many([("MULTI",), *commands, ("DISCARD",)], raise_refusals=False)
    assert set(replies[1:-1]) == {b"QUEUED"}, [reply for reply in replies if isinstance(reply, Refused)]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("side", "without", "named"),
    [
        (WORKER, "+xautoclaim", "xautoclaim"),
        (WORKER, "+xgroup|create", "xgroup|create"),
        (WORKER, "&sluice:frontend:*", "channel sluice:frontend:*"),
        (FRONTEND, "+pubsub|numsub", "pubsub|numsub"),
        (FRONTEND, "+hset", "hset"),
        (FRONTEND, "~sluice:answers:*", "key sluice:answers:*"),
        (FRONTEND, "+multi", "multi"),
    ],
)
async def test_what_is_missing_is_named(
    redis_server: RedisServer, nursery: trio.Nursery, side: Side, without: str, named: str
) -> None:
    link = Link(make_user(redis_server, side, without))
    await nursery.start(link.run)
    with pytest.raises(Refused, match=f"^NOPERM .*{side.name}.*: {re.escape(named)} \\("):
        await require_rights(link, side)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("full", ["maxmemory", "min-replicas-to-write"])
async def test_a_server_that_is_full_is_not_taken_for_a_lack_of_rights(
    redis_server: RedisServer, nursery: trio.Nursery, full: str
) -> None:
    link = Link(make_user(redis_server, WORKER))
    await nursery.start(link.run)
    redis_server.client.config_set(full, 1)
    assert await missing_rights(link, WORKER) == []
    nursery.cancel_scope.cancel()


REFUSED = re.compile("no permissions|can't (run|access|publish)|not allowed from script", re.IGNORECASE)
FORBIDDEN = [
    (FRONTEND, "XREADGROUP GROUP workers worker STREAMS sluice:jobs:{echo} >"),
    (FRONTEND, "XGROUP CREATE sluice:jobs:{echo} workers 0"),
    (FRONTEND, "XGROUP DESTROY sluice:jobs:{echo} workers"),
    (FRONTEND, "GET somebody:elses"),
    (FRONTEND, "PUBLISH somebody:elses x"),
    (FRONTEND, "PSUBSCRIBE *"),
    (WORKER, "HGETALL sluice:callers"),
    (WORKER, "HGETALL sluice:answers:{all}"),
    (WORKER, "XGROUP DESTROY sluice:jobs:{echo} workers"),
    (WORKER, "SUBSCRIBE somebody:elses"),
    *[
        (side, command)
        for side in SIDES
        for command in (
            "KEYS *", "SCAN 0", "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1", "DEBUG SLEEP 0", "SHUTDOWN",
            "MONITOR", "ACL LIST", "CLIENT LIST", "CLIENT KILL TYPE normal", "SCRIPT FLUSH", "SAVE", "REPLICAOF NO ONE",
            "MODULE LIST", "SLOWLOG GET", "SET somebody:elses 1",
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize("way", ["directly", "in a script"])
def test_what_nobody_needs_is_refused(redis_server: RedisServer, way: str) -> None:
    for side in SIDES:
        make_user(redis_server, side)
    for side, command in FORBIDDEN:
        with redis.Redis(port=redis_server.port, username=f"sluice-{side.name}", password=PASSWORD) as client:
            try:
                if way == "directly":
                    client.execute_command(*command.split())
                else:
                    words = ", ".join(f"'{word}'" for word in command.split())
                    client.eval(f"return redis.call({words})", 0)
            except redis.RedisError as refused:
                assert REFUSED.search(str(refused)), f"{side.name}: {command}: {refused}"
            else:
                raise AssertionError(f"{side.name} may {command}")


def test_the_operator_may_what_both_may() -> None:
    assert set(OPERATOR.commands) >= {*FRONTEND.commands, *WORKER.commands}
