"""Frontends and workers of different versions: they serve each other, or an error names both."""

import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from shared.redis import keys
from shared.schema.job import PROTOCOL, FrameKind, Job, OrderKind, Orders, Parcel
from shared.sealing import Seal
from tests.end_to_end.gateway import SECRET_KEY
from tests.faults.house import House
from tests.faults.streams import many, raw
from tests.waiting import until


@contextlib.asynccontextmanager
async def hears(house: House, channel: bytes) -> AsyncIterator[trio.MemoryReceiveChannel[bytes]]:
    """What is published on a channel, opened."""
    send, receive = trio.open_memory_channel[bytes](1000)
    seal = Seal([SECRET_KEY])
    with contextlib.closing(house.redis.client.pubsub(ignore_subscribe_messages=True)) as pubsub:
        pubsub.subscribe(channel)
        pubsub.get_message(timeout=1)

        async def listen() -> None:
            while True:
                while message := pubsub.get_message():
                    send.send_nowait(seal.open(message["data"], channel))
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            yield receive
            nursery.cancel_scope.cancel()


def packed_job(number: int, *, protocol: int = PROTOCOL, more: tuple[object, ...] = (), fewer: int = 0) -> bytes:
    """A job of another version: its protocol, further fields at its end, or fewer of them."""
    body = msgspec.json.encode({"model": "echo", "messages": [{"role": "user", "content": "over"}], "stream": True})
    job = Job(
        protocol,
        bytes([number]) * 16,
        1,
        "f-of-another-version",
        "chat",
        "echo",
        "echo",
        "echo",
        True,
        False,
        30.0,
        body,
        "req_x",
    )
    fields = list(msgspec.to_builtins(job, builtin_types=(bytes,)))
    return msgspec.msgpack.encode([*fields[: len(fields) - fewer], *more])


@pytest.mark.fault("E8")
async def test_jobs_of_a_newer_and_of_an_older_frontend(house: House) -> None:
    """Jobs with more fields and with fewer are answered; one of another protocol is handed back, and both are named."""
    seal, stream_key, channel = Seal([SECRET_KEY]), keys.jobs("echo"), keys.frontend_channel("f-of-another-version")
    with trio.fail_after(60):
        await house.open(workers=1, provider="echo", model="echo", warm_up=False)
        (worker,) = house.workers
        client = house.redis.client
        async with hears(house, channel) as heard:
            jobs = [
                packed_job(1, more=({"new": True}, "field")),
                packed_job(2, fewer=2),
                packed_job(3, protocol=PROTOCOL + 1),
            ]
            for packed in jobs:
                client.xadd(stream_key, {"job": seal.seal(packed, stream_key), "name": "x"})
            told: dict[int, list[tuple[int, bytes]]] = {1: [], 2: [], 3: []}
            finals = (FrameKind.DONE, FrameKind.FAILED)
            while not all(frames and frames[-1][0] in finals for frames in told.values()):
                parcel = msgspec.msgpack.decode(await heard.receive(), type=Parcel)
                for job, _, _, kind, payload in parcel.frames:
                    told[job[0]].append((kind, payload))
            orders = Orders("f-of-another-version", [(OrderKind.FINISHED, bytes([n]) * 16, 1, 0) for n in (1, 2)])
            to_worker = keys.worker_channel(parcel.worker)
            client.publish(to_worker, seal.seal(msgspec.msgpack.encode(orders), to_worker))
        for number in (1, 2):
            assert told[number][-1][0] == FrameKind.DONE
            assert b"over" in b"".join(payload for kind, payload in told[number] if kind == FrameKind.CHUNK)
        kind, message, *_ = msgspec.msgpack.decode(told[3][-1][1])
        assert kind == "version_mismatch"
        assert f"protocol {PROTOCOL + 1}" in message and f"speaks {PROTOCOL}" in message
        assert f"protocol {PROTOCOL + 1}, this worker" in worker.text()


@pytest.mark.fault("E8")
async def test_a_worker_of_another_version(audited: House) -> None:
    """A worker that advertises another protocol gets no jobs, and the log names both; the others answer."""
    client = audited.redis.client
    member, key = b"worker:w-of-another-version", keys.alive("worker", "w-of-another-version")
    text = client.get(next(client.scan_iter("sluice:alive:worker:*")))
    newer = msgspec.json.decode(text) | {
        "id": "w-of-another-version", "protocol": PROTOCOL + 1, "version": "99.0", "a_new_field": [1, 2],
        "models": [{"id": "new-one"}],
    }  # fmt: skip
    with trio.fail_after(30):
        client.set(key, msgspec.json.encode(newer), ex=30)
        client.sadd(keys.ALIVE, member)
        await until(lambda: "version 99.0) is ignored" in audited.frontend.text(), 10)
        assert f"speaks protocol {PROTOCOL + 1}" in audited.frontend.text()
        assert (await raw(audited, "new", model="new-one", stream=False)).status == 404
        client.set(key, msgspec.json.encode(newer | {"protocol": PROTOCOL}), ex=30)
        await until(lambda: client.get(key), 5)
        for told in await many(audited, 3, "all is well"):
            assert told.ended == "complete"
        client.delete(key)
        client.srem(keys.ALIVE, member)
