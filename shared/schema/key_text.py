"""How a caller's key is written: `sk-sluice-`, its id, 256 random bits, and a checksum that tells a typing mistake from a key.

    sk-sluice-1f2e3d4c-BASE64URL_OF_32_BYTES_WITHOUT_PADDING_________CHKSUM
              8 hex    43 characters                                  6 characters

The id is no secret: it names the key in logs, lists and limits. The checksum is the CRC-32 of what stands between the prefix
and it, and no secret either: it lets a gateway refuse garbage without asking anybody.
"""

import re
import zlib
from base64 import urlsafe_b64encode
from typing import Final

PREFIX: Final = "sk-sluice-"
"""Whatever begins like this is a key of some gateway of ours, and never an upstream's."""
SECRET_BYTES: Final = 32

_SHAPE: Final = re.compile(PREFIX + r"(?P<id>[0-9a-f]{8})-(?P<secret>[A-Za-z0-9_-]{43})(?P<checksum>[A-Za-z0-9_-]{6})")


def compose(key_id: str, secret: bytes) -> str:
    """The key with this id (8 hex digits) and secret (32 random bytes)."""
    body = f"{key_id}-{_text(secret)}"
    return f"{PREFIX}{body}{_checksum(body)}"


def id_of(key: str) -> str | None:
    """The id within a key; None for a text that is no key of this form, whatever it is."""
    found = _SHAPE.fullmatch(key)
    if found is None or _checksum(f"{found['id']}-{found['secret']}") != found["checksum"]:
        return None
    return found["id"]


def _checksum(body: str) -> str:
    return _text(zlib.crc32(body.encode()).to_bytes(4, "big"))


def _text(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()
