"""Where a Redis server listens and how to log in, read from the URL that every Redis client understands."""

import ssl
from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

DEFAULT_PORT = 6379
_PARAMETERS = {"db", "ssl_ca_certs"}


@dataclass(frozen=True, kw_only=True, repr=False)
class Address:
    """One Redis server and database. Printing it never shows the password."""

    host: str = "localhost"
    port: int = DEFAULT_PORT
    path: str | None = None
    """Of a unix socket; `host` and `port` mean nothing then."""
    username: str | None = None
    password: str | None = None
    db: int = 0
    tls: bool = False
    """With verification of the certificate and of the host's name."""
    ca_file: str | None = None
    """PEM file with the authorities to trust instead of the system's."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Understand one of

            redis://[[user]:password@]host[:port][/db]
            rediss://[[user]:password@]host[:port][/db][?ssl_ca_certs=FILE]
            unix://[[user]:password@]/path/to/socket[?db=N]

        `ValueError` says what is wrong, and quotes nothing that could be a part of a password.
        """
        if "#" in url:
            raise ValueError("a Redis URL has no '#'; within a password write it as %23")
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError("a Redis URL has a host name or an address, IPv6 in brackets") from None
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("a Redis URL begins with redis://, rediss:// or unix://")
        options = _options(parts)
        username, password = _login(parts)
        if parts.scheme == "unix":
            if "ssl_ca_certs" in options:
                raise ValueError("a unix:// URL has no ssl_ca_certs")
            return cls(path=_socket_path(parts), username=username, password=password, db=_db(options.get("db", "0")))
        if "ssl_ca_certs" in options and parts.scheme != "rediss":
            raise ValueError("ssl_ca_certs needs a rediss:// URL")
        in_path = parts.path.strip("/")
        if in_path and "db" in options:
            raise ValueError("a Redis URL names the database once, as /N or as ?db=N")
        return cls(
            host=parts.hostname or "localhost",
            port=_port(parts),
            username=username,
            password=password,
            db=_db(in_path or options.get("db", "0")),
            tls=parts.scheme == "rediss",
            ca_file=options.get("ssl_ca_certs"),
        )

    def tls_context(self) -> ssl.SSLContext:
        return _tls_context(self.ca_file)

    def __str__(self) -> str:
        """The URL with `***` for the password."""
        login = ""
        if self.username or self.password:
            login = quote(self.username or "", safe="") + (":***" if self.password else "") + "@"
        if self.path is not None:
            return f"unix://{login}{quote(self.path)}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{login}{host}:{self.port}/{self.db}"

    def __repr__(self) -> str:
        return f"<Address {self}>"


@lru_cache(maxsize=8)
def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Reading the authorities takes some ten milliseconds, so it is not done for every reconnect."""
    context = ssl.create_default_context(cafile=ca_file)
    # A renegotiation would make reading wait until one may write. TLS 1.3 has none, and nobody misses it in 1.2.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _options(parts: SplitResult) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := options.keys() - _PARAMETERS:
        raise ValueError(f"a Redis URL has {len(unknown)} unknown parameter(s) after '?'; known: db, ssl_ca_certs")
    return options


def _login(parts: SplitResult) -> tuple[str | None, str | None]:
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if username and password is None:
        raise ValueError("a Redis URL with a user needs a password too: user:password@host (or :password@host)")
    return username, password


def _socket_path(parts: SplitResult) -> str:
    path = unquote(parts.path)
    outside = parts.netloc.rpartition("@")[2]
    if outside or not path.startswith("/"):
        raise ValueError("a unix:// URL has three slashes and an absolute path: unix:///run/redis.sock")
    return path


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        return DEFAULT_PORT
    if port == 0:
        raise ValueError(
            "the port of a Redis URL is a number from 1 to 65535; write ':', '/' or '@' in a password as %3A, %2F, %40"
        )
    return port


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("the database of a Redis URL is a number; write '/' in a password as %2F")
    return int(text)
