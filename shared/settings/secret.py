"""A text that does not show itself: not in logs, not in reprs, not in formatted strings, not in pickles."""

import hmac
from typing import NoReturn

MASK = "***"


class Secret:
    """Holds a secret text; only `reveal()` hands it out.

    Deliberately no subclass of str: joining, encoding or serialising one by accident is a TypeError and not a leak.
    Two secrets are compared in constant time.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself. Every call is a place where it may leak."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __len__(self) -> int:
        return len(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")
