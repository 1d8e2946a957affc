"""Unpacking: every cut, bounded pieces, bombs, damage."""

import gzip
import zlib

import pytest

from workers.exchange import ProtocolViolation, TooLarge
from workers.transports.inflate import BOMB_FLOOR_BYTES, PIECE_BYTES, Inflater

TEXT = "".join(f'data: {{"n":{n}}}\n\n' for n in range(200)).encode()


def inflate(coding: str, pieces: list[bytes]) -> list[bytes]:
    inflater = Inflater(coding)
    plain = []
    for piece in pieces:
        inflater.feed(piece)
        while part := inflater.take():
            plain.append(part)
    inflater.end()
    return plain


@pytest.mark.parametrize(
    ("coding", "packed"),
    [("gzip", gzip.compress(TEXT)), ("x-gzip", gzip.compress(TEXT)), ("deflate", zlib.compress(TEXT))],
)
def test_the_same_however_it_is_cut(coding: str, packed: bytes) -> None:
    for step in (1, 2, 7, len(packed)):
        pieces = [packed[i : i + step] for i in range(0, len(packed), step)]
        assert b"".join(inflate(coding, pieces)) == TEXT


def test_events_come_out_as_they_were_flushed() -> None:
    packer = zlib.compressobj(wbits=31)
    inflater = Inflater("gzip")
    for number in range(50):
        event = b"data: %d\n\n" % number
        inflater.feed(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH))
        assert inflater.take() == event
        assert inflater.take() == b""
    with pytest.raises(ProtocolViolation, match="cut"):
        inflater.end()
    inflater.feed(packer.flush())
    assert inflater.take() == b""
    inflater.end()


def test_pieces_are_bounded() -> None:
    plain = bytes(BOMB_FLOOR_BYTES)
    pieces = inflate("gzip", [gzip.compress(plain)])
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert b"".join(pieces) == plain


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    inflater = Inflater("gzip")
    inflater.feed(gzip.compress(bytes(50 * BOMB_FLOOR_BYTES)))
    taken = 0
    with pytest.raises(TooLarge):
        while part := inflater.take():
            taken += len(part)
    assert taken <= 6 * BOMB_FLOOR_BYTES


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", b"not gzip at all"),
        ("gzip", gzip.compress(TEXT) + b"more"),
        ("br", b"x"),
        ("gzip, gzip", gzip.compress(TEXT)),
    ],
)
def test_what_is_refused(coding: str, packed: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        inflate(coding, [packed])
    with pytest.raises(ProtocolViolation):
        inflate(coding, [packed[i : i + 1] for i in range(len(packed))])


@pytest.mark.parametrize("coding", ["gzip", "br"])
def test_no_body_at_all_is_no_error(coding: str) -> None:
    assert inflate(coding, []) == []
