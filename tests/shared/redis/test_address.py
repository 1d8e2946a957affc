"""What a Redis URL may look like, and that nothing which could be a password is ever shown."""

import pytest
import redis

from shared.redis.address import Address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://example.org", Address(host="example.org")),
        ("redis://example.org:6380/3", Address(host="example.org", port=6380, db=3)),
        ("redis://example.org?db=3", Address(host="example.org", db=3)),
        ("redis://:secret@example.org", Address(host="example.org", password="secret")),
        ("redis://me:se%2Fcr%40et@h:1/", Address(host="h", port=1, username="me", password="se/cr@et")),
        ("rediss://h", Address(host="h", tls=True)),
        ("rediss://h/1?ssl_ca_certs=/ca.pem", Address(host="h", tls=True, db=1, ca_file="/ca.pem")),
        ("redis://[::1]:7000", Address(host="::1", port=7000)),
        ("redis:///2", Address(host="localhost", db=2)),
        ("unix:///run/redis.sock", Address(path="/run/redis.sock")),
        ("unix:///run/my%20redis.sock?db=4", Address(path="/run/my redis.sock", db=4)),
        ("unix://me:secret@/run/r.sock", Address(path="/run/r.sock", username="me", password="secret")),
    ],
)
def test_understands(url: str, expected: Address) -> None:
    assert Address.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    ["redis://u:p%40ss@example.org:6380/3", "redis://example.org?db=3", "unix:///run/redis.sock?db=4"],
)
def test_means_the_same_to_an_independent_client(url: str) -> None:
    theirs = redis.Redis.from_url(url).connection_pool.connection_kwargs
    ours = Address.parse(url)
    assert theirs.get("db", 0) == ours.db
    assert theirs.get("host") == (ours.host if ours.path is None else None)
    assert theirs.get("path") == ours.path
    assert (theirs.get("username"), theirs.get("password")) == (ours.username, ours.password)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://example.org", "begins with redis://"),
        ("example.org:6379", "begins with redis://"),
        ("", "begins with redis://"),
        ("redis://hunter2@example.org", "needs a password"),
        ("redis://example.org:99999", "port"),
        ("redis://example.org:0", "port"),
        ("redis://:hunter2:hunter2/hunter2@example.org", "password"),
        ("redis://:hunter2#hunter2@example.org", "%23"),
        ("redis://example.org/hunter2", "database"),
        ("redis://example.org/1?db=2", "once"),
        ("redis://example.org/²", "database"),
        ("redis://example.org?socket_timeout=hunter2", "unknown parameter"),
        ("redis://example.org?ssl_ca_certs=/ca.pem", "rediss://"),
        ("redis://[::1", "IPv6"),
        ("redis://:hunter2℀@example.org", "host name"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix://", "three slashes"),
        ("unix:///s?ssl_ca_certs=/ca.pem", "no ssl_ca_certs"),
    ],
)
def test_refuses_with_a_reason_that_quotes_no_secret(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        Address.parse(url)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@example.org:6379/1", "redis://:***@example.org:6379/1"),
        ("rediss://me:hunter2@[::1]:1/0", "rediss://me:***@[::1]:1/0"),
        ("unix://me:hunter2@/run/r.sock?db=2", "unix://me:***@/run/r.sock?db=2"),
        ("unix:///run/r.sock", "unix:///run/r.sock"),
    ],
)
def test_shows_everything_but_the_password(url: str, shown: str) -> None:
    address = Address.parse(url)
    assert str(address) == shown
    assert repr(address) == f"<Address {shown}>"
    assert f"{address!s} {address!r}".count("hunter2") == 0
