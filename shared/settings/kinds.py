"""The kinds of values a setting can have: each a sentence of what is expected and a function that reads it."""

import ipaddress
import re
import string
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from shared.redis.address import Address
from shared.settings.row import Expected, Kind
from shared.settings.secret import Secret

_SWITCH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
_PLACEHOLDERS = re.compile(r"(change[-_ ]?me|secret|password|api[-_]?key|your[-_].*|x{3,}|sk-\.*|<.*>|.*\.\.\.)", re.I)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")

SHORTEST_SECRET_KEY = 32
"""Characters; a hex text of this length holds 128 random bits."""


class Listen(NamedTuple):
    """Where to listen; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def whole(low: int, high: int | None = None) -> Kind:
    """A whole number from `low` to `high`."""
    expects = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9][0-9_]*", text):
            raise Expected(expects)
        number = int(text)
        if number < low or (high is not None and number > high):
            raise Expected(expects)
        return number

    return Kind(expects, read)


def seconds(low: float, high: float = 86_400) -> Kind:
    """A duration in seconds from `low` to `high`; None when empty."""
    expects = f"seconds, a number from {low:g} to {high:g}"

    def read(text: str) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text):
            raise Expected(expects)
        number = float(text)
        if not low <= number <= high:
            raise Expected(expects)
        return number

    return Kind(expects, read)


def choice(*words: str) -> Kind:
    """One of `words`, in any case; the value is the word in lower case."""
    expects = f"{', '.join(words[:-1])} or {words[-1]}"

    def read(text: str) -> str:
        if text.lower() not in words:
            raise Expected(expects)
        return text.lower()

    return Kind(expects, read)


def template(*names: str) -> Kind:
    """A text with places `{name}` for values of these names, and no other braces."""
    expects = f"a text with some of {', '.join(f'{{{name}}}' for name in names)}"

    def read(text: str) -> str:
        try:
            places = [place[1:] for place in string.Formatter().parse(text) if place[1] is not None]
        except ValueError:
            raise Expected(expects) from None
        if not places or any(place not in [(name, "", None) for name in names] for place in places):
            raise Expected(expects)
        return text

    return Kind(expects, read)


def _read_switch(text: str) -> bool:
    return _SWITCH[text.lower()] if text.lower() in _SWITCH else _refuse("on or off")


def _refuse(expectation: str) -> Any:
    raise Expected(expectation)


def pieces(text: str) -> list[str]:
    """The items of a list: separated by commas or line ends, blanks around them dropped."""
    return [piece for piece in (raw.strip() for raw in re.split(r"[,\n]", text)) if piece]


def listed(expects: str, read_one: Callable[[str], Any]) -> Kind:
    """A comma-separated list as a tuple; the empty tuple when empty."""

    def read(text: str) -> tuple[Any, ...]:
        items = tuple(read_one(piece) for piece in pieces(text))
        if len(set(items)) != len(items):
            raise Expected(f"{expects}, each once")
        return items or _refuse(expects)

    return Kind(expects, read, empty=())


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, brackets allowed) can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read_host(text: str) -> str:
    bare = text.strip("[]")
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        if not _HOST.fullmatch(text):
            raise Expected("an IP address or a host name") from None
    return bare


def _split(text: str, expects: str, schemes: tuple[str, ...]) -> SplitResult:
    try:
        url = urlsplit(text)
        url.port  # noqa: B018 - the property checks the number
    except ValueError:
        raise Expected(expects) from None
    if url.scheme not in schemes or any(sign.isspace() for sign in text):
        raise Expected(expects)
    return url


def _read_base_url(text: str) -> str:
    expects = BASE_URL.expects
    url = _split(text, expects, ("http", "https"))
    if not url.hostname or url.query or url.fragment or url.username is not None:
        raise Expected(expects)
    return text.rstrip("/")


def _read_socket_url(text: str) -> str:
    url = _split(text, SOCKET_URL.expects, ("wss", "ws", "https", "http"))
    if not url.hostname or url.query or url.fragment or url.username is not None:
        raise Expected(SOCKET_URL.expects)
    return text.rstrip("/")


def _read_listen(text: str) -> Listen:
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise Expected(LISTEN.expects)
    return Listen(_read_host(host), int(port))


def _read_redis_url(text: str) -> Secret:
    try:
        Address.parse(text)
    except ValueError as error:
        raise Expected(f"{REDIS_URL.expects} ({error})") from None
    return Secret(text)


def _read_proxy(text: str) -> Secret:
    url = _split(text, PROXY.expects, ("http", "https", "socks5"))
    if not url.hostname or url.path.strip("/"):
        raise Expected(PROXY.expects)
    return Secret(text)


def _read_origin(text: str) -> str:
    if text == "*":
        return text
    url = _split(text, ORIGINS.expects, ("http", "https"))
    if not url.hostname or url.path or url.query or url.fragment or url.username is not None:
        raise Expected(ORIGINS.expects)
    return text.lower()


def _read_key(text: str) -> Secret:
    if not text.isascii() or not text.isprintable() or " " in text or "," in text:
        raise Expected("keys of printable ASCII characters without spaces")
    if _PLACEHOLDERS.fullmatch(text):
        raise Expected("a real key, not a placeholder")
    return Secret(text)


def _read_token(text: str) -> Secret:
    """A bearer token, also as it is copied from a header."""
    words = text.split()
    return _read_key(" ".join(words[1:] if words[0].lower() == "bearer" else words))


def _read_secret_key(text: str) -> Secret:
    if len(text) < SHORTEST_SECRET_KEY or len(set(text)) < 8:
        raise Expected(SECRET_KEYS.expects)
    return _read_key(text)


def split_model(text: str) -> tuple[str, str]:
    """The public name of a model and its upstream's own, from `name` or `name=own name`."""
    name, _, own = (part.strip() for part in text.partition("="))
    return name, own or name


def _read_models(text: str) -> tuple[str, ...]:
    models = tuple(_read_listed_model(piece) for piece in pieces(text))
    if len({split_model(model)[0] for model in models}) != len(models):
        raise Expected(f"{MODELS.expects}, each once")
    return models or _refuse(MODELS.expects)


def _read_listed_model(text: str) -> str:
    name, own = split_model(text)
    if not name or text.rstrip().endswith("="):
        raise Expected(MODELS.expects)
    return f"{_read_model(name)}={_read_model(own)}" if own != name else _read_model(name)


def _read_model(text: str) -> str:
    if not text.isprintable() or " " in text or len(text) > 128:
        raise Expected(MODELS.expects)
    return text


def _read_aliases(text: str) -> MappingProxyType[str, str]:
    aliases: dict[str, str] = {}
    for piece in pieces(text):
        alias, _, target = (part.strip() for part in piece.partition("="))
        if not alias or not target or alias == target:
            raise Expected(ALIASES.expects)
        if alias in aliases:
            raise Expected(f"each alias once ({alias} is given twice)")
        aliases[_read_model(alias)] = _read_model(target)
    for alias, target in aliases.items():
        if target in aliases:
            raise Expected(f"aliases of models, not of aliases ({alias} -> {target})")
    return MappingProxyType(aliases)


SWITCH = Kind("on or off", _read_switch, empty=False)
SWITCH_IF_SET = Kind("on or off", _read_switch)
TEXT = Kind("a text", str, empty="")
HOST = Kind("an IP address or a host name", _read_host)
LISTEN = Kind("an address and a port such as 127.0.0.1:9100", _read_listen)
PATH = Kind("a path", Path)
BASE_URL = Kind("an http:// or https:// address without query or password", _read_base_url, empty="")
SOCKET_URL = Kind("a wss:// or https:// address without query or password", _read_socket_url, empty="")
REDIS_URL = Kind("an address such as redis://:password@host:6379/0, rediss://… or unix:///path", _read_redis_url)
PROXY = Kind("a proxy such as http://user:password@host:3128 or socks5://host:1080", _read_proxy)
ORIGINS = listed("origins such as https://app.example (scheme, host, port; no path), or *", _read_origin)
API_KEY = Kind("a key of printable ASCII characters without spaces", _read_key)
API_KEYS = listed("one or more keys, separated by commas", _read_key)
TOKENS = listed("one or more tokens, separated by commas", _read_token)
WORDS = listed("words without spaces, separated by commas", _read_model)
SECRET_KEYS = listed(
    f"keys of {SHORTEST_SECRET_KEY} random characters or more (`openssl rand -hex 32`)", _read_secret_key
)
MODELS = Kind("model names without spaces, at most 128 characters each", _read_models, empty=())
MODEL = Kind("one model name without spaces", _read_model, empty="")
ALIASES = Kind("alias=model pairs such as fast=openai/gpt-4o-mini", _read_aliases, empty=MappingProxyType({}))
