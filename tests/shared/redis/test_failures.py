"""What each refusal of a real server is taken for."""

import pytest

from shared.redis.address import Address
from shared.redis.failures import LinkDown, RedisError, RefusalKind, Refused
from shared.redis.link import Link
from tests.redis_server import RedisServer


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("LOADING Redis is loading the dataset in memory", "transient"),
        ("BUSY Redis is busy running a script.", "transient"),
        ("ERR max number of clients reached", "transient"),
        ("ERR max number of clients + cluster connections reached", "transient"),
        ("NOREPLICAS Not enough good replicas to write.", "transient"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "transient"),
        ("CLUSTERDOWN Hash slot not served", "transient"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "transient"),
        ("MOVED 3999 127.0.0.1:6381", "wrong_node"),
        ("READONLY You can't write against a read only replica.", "wrong_node"),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", "wrong_node"),
        ("MISCONF Redis is configured to save RDB snapshots", "capacity"),
        # Redis 7 puts the word of an error inside a script first.
        ("OOM command not allowed when used memory > 'maxmemory'. script: f_1, on @user_script:1.", "capacity"),
        ("DENIED Redis is running in protected mode", "configuration"),
        ("BUSYGROUP Consumer Group name already exists", "bug"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "bug"),
        ("ERR unknown command 'FOO'", "bug"),
        ("", "bug"),
    ],
)
def test_classes(text: str, kind: str) -> None:
    assert Refused(text).kind == kind


def test_the_tree_is_small() -> None:
    assert issubclass(LinkDown, RedisError)
    assert issubclass(Refused, RedisError)
    assert Refused("NOSCRIPT No matching script").code == "NOSCRIPT"
    assert LinkDown("x").may_have_executed is False


@pytest.mark.parametrize(
    ("command", "code", "kind"),
    [
        (("EVALSHA", "0" * 40, 0), "NOSCRIPT", RefusalKind.REPRIME),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"), "NOGROUP", RefusalKind.REPRIME),
        (("XAUTOCLAIM", "s", "g", "c", 0, "0"), "NOGROUP", RefusalKind.REPRIME),
        (("XGROUP", "CREATE", "s", "g", "0"), "ERR", RefusalKind.REPRIME),
        (("XINFO", "STREAM", "s"), "ERR", RefusalKind.REPRIME),
        (("EVAL", "return redis.call('XREADGROUP','GROUP','g','c','STREAMS','s','>')", 0), None, RefusalKind.REPRIME),
        (("SELECT", 9999), "ERR", RefusalKind.CONFIGURATION),
        (("AUTH", "x"), "ERR", RefusalKind.CONFIGURATION),
        (("AUTH", "nobody", "x"), "WRONGPASS", RefusalKind.CONFIGURATION),
        (("EVAL", "return nonsense()", 0), None, RefusalKind.BUG),
        (("EVAL", "return redis.error_reply('MINE is mine')", 0), "MINE", RefusalKind.BUG),
        (("GET",), "ERR", RefusalKind.BUG),
    ],
)
async def test_a_real_server_says(link: Link, command: tuple[str, ...], code: str | None, kind: RefusalKind) -> None:
    with pytest.raises(Refused) as refusal:
        await link.call(*command)
    assert refusal.value.kind is kind
    assert code in (None, refusal.value.code)
    assert link.up


async def test_a_full_server_refuses_for_capacity(redis_server: RedisServer, link: Link) -> None:
    redis_server.client.set("filler", b"x" * 4_000_000)
    redis_server.client.config_set("maxmemory", 3_000_000)
    for command in (("SET", "a", "b"), ("EVAL", "return redis.call('SET', 'a', 'b')", 0)):
        with pytest.raises(Refused) as refusal:
            await link.call(*command)
        assert refusal.value.kind is RefusalKind.CAPACITY
    assert await link.call("PUBLISH", "channel", "still works") == 0


async def test_rights_that_are_missing_are_named(redis_server: RedisServer, nursery) -> None:
    redis_server.client.execute_command("ACL", "SETUSER", "clerk", "on", ">pw", "~*", "&*", "+@all", "-xadd")
    address = Address(path=str(redis_server.socket_path), username="clerk", password="pw")
    link = Link(address)
    await nursery.start(link.run)
    with pytest.raises(Refused, match="xadd") as refusal:
        await link.call("XADD", "s", "*", "a", "b")
    assert refusal.value.kind is RefusalKind.CONFIGURATION
