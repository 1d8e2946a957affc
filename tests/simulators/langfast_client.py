"""What the tests of the langfast simulator do as a client: sign up, connect, start a run, listen."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.simulators.langfast import Langfast
from tests.simulators.raw_client import ask
from tests.simulators.socket_client import SocketClient, socket_client


async def sign_up(upstream: Langfast) -> tuple[int, Any]:
    seen = await ask(upstream, {}, path="/auth/v1/signup", apikey=upstream.anon_key)
    return seen.status, json.loads(seen.body)


def run_body(upstream: Langfast, session: Any, words: str, **meta: Any) -> dict[str, Any]:
    return {
        "run_id": str(uuid.uuid4()),
        "prompt_id": upstream.prompt_id,
        "prompt_meta": {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": words}],
            "stream": True,
            **meta,
        },
        "test_cases": [],
        "created_by": session["user"]["id"],
    }


async def start(upstream: Langfast, session: Any, words: str, **changes: Any) -> tuple[int, Any]:
    body = {**run_body(upstream, session, words), **changes}
    seen = await ask(
        upstream,
        body,
        path="/functions/v1/initiate-prompt-run",
        apikey=upstream.anon_key,
        authorization=f"Bearer {session['access_token']}",
    )
    return seen.status, json.loads(seen.body) if seen.headers.get("content-type") == "application/json" else None


@asynccontextmanager
async def connected_user(upstream: Langfast) -> AsyncIterator[tuple[Any, SocketClient]]:
    _, session = await sign_up(upstream)
    async with socket_client(upstream) as client:
        assert (await client.connect(session["access_token"]) or "").startswith("40{")
        yield session, client


async def play(upstream: Langfast, words: str) -> tuple[str, list[tuple[str, Any]]]:
    """Start a run and collect its events until completion or the end of the connection."""
    async with connected_user(upstream) as (session, client):
        status, answer = await start(upstream, session, words)
        assert status == 200
        heard = []
        while (event := await client.receive_event()) is not None:
            heard.append(event)
            if event[0] == "completion_finished" or event[1] == {"stop": True}:
                break
            if event[0] == "execution:chunk" and isinstance(event[1], dict) and event[1].get("status") == "failed":
                break
        return answer["jobs"][0]["job_id"], heard
