"""Callers with limits at a gateway of several frontends, and what Redis has counted of them."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import httpx2
import pytest
import trio

from shared.redis.usage import UsageRow, rows_of
from tests.end_to_end.gateway import API_KEY, Gateway, gateway
from tests.redis_server import RedisServer


def start(redis: RedisServer, frontends: int) -> contextlib.AbstractContextManager[Gateway]:
    @contextlib.contextmanager
    def running() -> Iterator[Gateway]:
        with gateway(redis) as house:
            for _ in range(frontends):
                house.frontend()
            house.worker("echo")
            for port in house.ports:
                house.wait_ready("echo", port=port)
            yield house

    return running()


class Caller:
    """One caller's key at a gateway."""

    def __init__(self, house: Gateway, http: httpx2.AsyncClient, record: dict[str, object]) -> None:
        self.house = house
        self.http = http
        self.record = record
        self.id = str(record["id"])
        self.headers = {"authorization": f"Bearer {record['key']}"}

    async def ask(self, words: str = "hi", model: str = "echo", frontend: int = 0, **fields: object) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": words}], **fields}
        return await self.http.post(self._url(frontend), headers=self.headers, json=body)

    @contextlib.asynccontextmanager
    async def stream(
        self, words: str, model: str = "echo-stall", frontend: int = 0, **fields: object
    ) -> AsyncIterator[httpx2.Response]:
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": words}], **fields}
        async with self.http.stream("POST", self._url(frontend), headers=self.headers, json=body) as response:
            yield response

    def _url(self, frontend: int) -> str:
        return f"http://127.0.0.1:{self.house.ports[frontend % len(self.house.ports)]}/v1/chat/completions"

    def slots(self) -> int:
        return self.house.redis.client.hlen(f"sluice:caller:{{{self.id}}}:reserved")

    def usage(self) -> list[UsageRow]:
        return [row for row in usage(self.house) if row.caller == self.id]

    def counted(self) -> dict[str, int]:
        """Requests by outcome, all models together."""
        counts: Counter[str] = Counter()
        for row in self.usage():
            counts.update({name: getattr(row, name) for name in ("done", "failed", "cancelled", "unsettled")})
        return {name: count for name, count in counts.items() if count}


def usage(house: Gateway) -> list[UsageRow]:
    day = datetime.now(UTC).date().isoformat()
    return rows_of(day, house.redis.client.hgetall(f"sluice:usage:{day}").items())


async def a_caller(house: Gateway, http: httpx2.AsyncClient, **limits: object) -> Caller:
    made = await http.post(
        f"{house.origin}/admin/keys", headers={"authorization": f"Bearer {API_KEY}"}, json={"name": "a", **limits}
    )
    assert made.status_code in (200, 201), made.text
    return Caller(house, http, made.json())


async def all_at_once(asks: list) -> list[httpx2.Response]:
    answers: list[httpx2.Response] = []

    async def one(ask) -> None:
        answers.append(await ask())

    async with trio.open_nursery() as nursery:
        for ask in asks:
            nursery.start_soon(one, ask)
    return answers


def error_of(answer: httpx2.Response) -> dict[str, object]:
    error: dict[str, object] = answer.json()["error"]
    return error


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=20, limits=httpx2.Limits(max_connections=200)) as client:
        yield client
