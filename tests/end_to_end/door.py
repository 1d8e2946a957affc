"""One frontend of a gateway, as administrators and callers see it."""

from typing import Any

import httpx2

from tests.end_to_end.gateway import API_KEY

HELLO = [{"role": "user", "content": "hello"}]


class Door:
    """One frontend, as administrators and callers see it."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"

    async def ask(self, method: str, path: str, key: str | None = API_KEY, **options: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        async with httpx2.AsyncClient(timeout=20, headers=headers) as client:
            return await client.request(method, self.origin + path, **options)

    async def make(self, **fields: Any) -> tuple[str, dict[str, Any]]:
        reply = await self.ask("POST", "/admin/keys", json=fields)
        assert reply.status_code == 200, reply.text
        record = reply.json()
        return record.pop("key"), record

    async def chat(self, key: str | None, model: str = "echo", **fields: Any) -> httpx2.Response:
        return await self.ask("POST", "/v1/chat/completions", key, json={"model": model, "messages": HELLO, **fields})

    async def status(self, key: str | None, model: str = "echo") -> int:
        return (await self.chat(key, model)).status_code
