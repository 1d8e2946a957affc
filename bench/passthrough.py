"""The yardstick: what people write first, a FastAPI route that passes an upstream's bytes through with httpx."""

import os
from collections.abc import AsyncIterator

import httpx2
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

UPSTREAM = os.environ["BENCH_UPSTREAM"]
app = FastAPI()
client = httpx2.AsyncClient(limits=httpx2.Limits(max_connections=None), timeout=600, trust_env=False)


@app.post("/v1/chat/completions")
async def chat_completions(request: Request) -> StreamingResponse:
    upstream = await client.send(
        client.build_request(
            "POST",
            f"{UPSTREAM}/chat/completions",
            content=await request.body(),
            headers={"content-type": "application/json", "authorization": "Bearer bench"},
        ),
        stream=True,
    )

    async def body() -> AsyncIterator[bytes]:
        try:
            async for piece in upstream.aiter_raw():
                yield piece
        finally:
            await upstream.aclose()

    return StreamingResponse(body(), upstream.status_code, media_type=upstream.headers.get("content-type"))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), log_level="warning", access_log=False)
