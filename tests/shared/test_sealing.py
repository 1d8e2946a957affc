"""What is sealed opens with the right key at the right place, and nowhere else."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import sealing
from shared.sealing import Seal, SealBroken

KEY = "first secret key of the deployment"
OLD = "a secret key that was retired last week"
TEXT = b'{"messages": [{"role": "user", "content": "the canary sings"}]}'
PLACE = b"sluice:jobs:{openai}"


def refused(seal, blob, context=PLACE):
    with pytest.raises(SealBroken):
        seal.open(blob, context)
    return True


@pytest.mark.parametrize("text", [b"", b"x", TEXT, bytes(range(256)) * 4096], ids=len)
@pytest.mark.parametrize("context", [b"", PLACE])
def test_round_trip_between_processes(text, context):
    assert Seal([KEY]).open(Seal([KEY]).seal(text, context), context) == text


def test_nothing_of_it_can_be_read():
    blob = Seal([KEY]).seal(TEXT, PLACE)
    assert not any(word in blob for word in (b"canary", b"messages", PLACE, KEY.encode()))
    assert len(blob) == len(TEXT) + 29 + 16


def test_the_same_text_never_looks_the_same():
    seal = Seal([KEY])
    blobs = [seal.seal(TEXT, PLACE) for _ in range(1000)]
    assert len(set(blobs)) == 1000
    assert len({blob[21:29] for blob in blobs}) == 1000, "a counter that repeats would give the key away"
    assert len({blob[:21] for blob in blobs}) == 1


def test_another_key_opens_nothing():
    blob = Seal([KEY]).seal(TEXT, PLACE)
    assert refused(Seal([OLD]), blob)
    assert refused(Seal([KEY + " "]), blob)


@pytest.mark.parametrize("place", [b"", b"sluice:jobs:{kimi}", PLACE + b" ", PLACE[:-1]])
def test_a_blob_opens_at_its_place_only(place):
    assert refused(Seal([KEY]), Seal([KEY]).seal(TEXT, PLACE), place)


def test_two_blobs_cannot_be_exchanged():
    """As somebody with access to Redis could try: one caller's job under another's number."""
    seal = Seal([KEY])
    mine, yours = seal.seal(b"mine", b"job:1"), seal.seal(b"yours", b"job:2")
    assert refused(seal, mine, b"job:2") and refused(seal, yours, b"job:1")
    assert refused(seal, mine[:29] + yours[29:], b"job:1"), "one's nonce, the other's text"
    assert refused(seal, yours[:29] + mine[29:], b"job:1")
    assert seal.open(mine, b"job:1") == b"mine"


def test_every_truncation_is_noticed():
    blob = Seal([KEY]).seal(b"hello", PLACE)
    for length in range(len(blob)):
        assert refused(Seal([KEY]), blob[:length])
    assert refused(Seal([KEY]), blob + b"\0")


def test_every_flipped_bit_is_noticed():
    blob = Seal([KEY]).seal(b"hello", PLACE)
    for position in range(len(blob) * 8):
        damaged = bytearray(blob)
        damaged[position // 8] ^= 1 << position % 8
        assert refused(Seal([KEY]), bytes(damaged))


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda tail: Seal([KEY]).seal(b"", PLACE)[:21] + tail))
def test_garbage_is_refused_in_one_way(blob):
    assert refused(Seal([KEY]), blob)


# --- rotation


def test_a_new_key_is_rolled_out_in_three_steps_and_everybody_understands_everybody():
    old, both, turned, new = Seal([OLD]), Seal([OLD, KEY]), Seal([KEY, OLD]), Seal([KEY])
    for step in [(old, both), (both, turned), (turned, new)]:
        for one in step:
            for other in step:
                assert other.open(one.seal(TEXT, PLACE), PLACE) == TEXT
    assert refused(new, old.seal(TEXT, PLACE))


def test_the_fingerprint_names_the_key_that_seals():
    assert Seal([KEY]).fingerprint == Seal([KEY, OLD]).fingerprint
    assert Seal([OLD, KEY]).fingerprint == Seal([OLD]).fingerprint != Seal([KEY]).fingerprint
    assert len(Seal([KEY]).fingerprint) == 8 and int(Seal([KEY]).fingerprint, 16) >= 0


def test_a_ring_needs_a_key():
    with pytest.raises(ValueError, match="secret key"):
        Seal([])


def test_the_same_key_twice_is_one_key():
    assert Seal([KEY, KEY]).fingerprint == Seal([KEY]).fingerprint


# --- processes


def test_two_processes_never_share_a_salt():
    """They count their nonces from one each, so with a salt in common they would use each of them twice."""
    script = f"from shared.sealing import Seal; print(Seal([{KEY!r}]).seal(b'x', b'y').hex())"
    processes = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    blobs = [bytes.fromhex(process.communicate(timeout=20)[0]) for process in processes]
    assert [blob[21:29] for blob in blobs] == [(1).to_bytes(8, "big")] * 2
    assert blobs[0][5:21] != blobs[1][5:21]
    assert len({Seal([KEY]).seal(b"", b"")[5:21] for _ in range(100)}) == 100
    assert [Seal([KEY]).open(blob, b"y") for blob in blobs] == [b"x", b"x"]


def test_many_peers_come_and_go(monkeypatch):
    """Every restart of a process is a new peer; their keys are kept for a while, and found again if need be."""
    monkeypatch.setattr(sealing, "_CACHED_PEERS", 4)
    listener = Seal([KEY])
    blobs = [Seal([KEY]).seal(b"%d" % number, PLACE) for number in range(10)]
    for _ in range(2):
        assert [listener.open(blob, PLACE) for blob in blobs] == [b"%d" % number for number in range(10)]
        assert len(listener._peers) <= 4


# --- names


def test_a_name_tells_secrets_apart_and_says_nothing():
    name = Seal([KEY]).name(b"sk-secret", b"credential")
    assert name == Seal([KEY, OLD]).name(b"sk-secret", b"credential")
    others = {
        Seal([KEY]).name(b"sk-secret2", b"credential"),
        Seal([KEY]).name(b"sk-secret", b"caller"),
        Seal([OLD]).name(b"sk-secret", b"credential"),
        Seal([KEY]).name(b"\0sk-secret", b"credential"),
        name,
    }
    assert len(others) == 5
    assert len(name) == 16 and int(name, 16) >= 0
