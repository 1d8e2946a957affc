"""A Lua script that runs inside Redis, known there by its digest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.redis.wire import Word


@dataclass(frozen=True)
class Script:
    """Source of a script. A server that does not know it (any more) is told the source again by itself."""

    source: str = field(repr=False)
    name: str = ""
    digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        # Redis names scripts by SHA-1; nothing about security hangs on it.
        object.__setattr__(self, "digest", hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest())


ScriptCall = tuple[Script, Sequence[Word], Sequence[Word]]
"""A script, its keys and its arguments: what `Link.post_script` and `Link.script` take."""
