"""How a provider's credentials stand, for whoever looks from outside; without a key to them, secrets stay sealed."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from shared.redis import keys
from shared.redis.credentials import operating
from shared.redis.link import Link
from shared.redis.wire import Reply
from shared.schema.credential import Opened, Record, Standing

Open = Callable[[str, bytes, bytes | None], Opened | None]
"""From a credential's id, stamp and sealed secret to what opens the upstream."""

_decode_record = msgspec.json.Decoder(Record).decode


async def look(link: Link, provider: str) -> list[Standing]:
    """All credentials of a provider, none of them opened. Raises `RedisError`."""
    return standings(await link.script(operating.LIST, keys.pool(provider), (b"",)), lambda *_: None)


def standings(reply: Reply, open_secret: Open) -> list[Standing]:
    """What LIST answers, in order of ids."""
    now, records, secrets, counts, timers, _tasks = reply
    sealed, loads, ends = _pairs(secrets), _pairs(counts), _pairs(timers)
    listed = []
    for credential_id, text in sorted(_pairs(records).items()):
        record = _decode_record(text)
        prefix = f"rest {credential_id} "
        listed.append(
            Standing(
                credential_id,
                record,
                open_secret(credential_id, b"%d." % record.generation, sealed.get(credential_id)),
                calls=int(loads.get(f"load {credential_id}", 0)),
                retired_seconds=_until(ends.get(f"retired {credential_id}"), now),
                suspended_seconds=_until(ends.get(f"suspended {credential_id}"), now),
                rests={
                    member.removeprefix(prefix): _until(end, now)
                    for member, end in ends.items()
                    if member.startswith(prefix)
                },
                expires_seconds=(record.expires - now) / 1000 if record.expires else None,
                tested_seconds_ago=(now - record.tested_at) / 1000 if record.tested_at else None,
            )
        )
    return listed


def _pairs(flat: Sequence[bytes]) -> dict[str, Any]:
    """A flat list of names and values as a dict."""
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def _until(end: bytes | None, now: int) -> float:
    return 0.0 if end is None else max(0.0, (float(end) - now) / 1000)
