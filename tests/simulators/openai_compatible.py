"""A simulator of the OpenAI-compatible upstreams: one server, six dialects, and the faults of `script`.

    async with OpenAICompatible("deepseek", keys={"sk-one"}).running() as upstream:
        upstream.base_url            # http://127.0.0.1:PORT/v1
        upstream.control.next(fault="drop_mid")
        call = await upstream.ledger.wait_for_call()

`POST /chat/completions`, `/completions`, `/embeddings`, `GET /models`, `GET /models/{id}`, under any prefix. Without
`keys` every key is good; with them an unknown or missing one is refused in the vendor's shape. `concurrency` and
`requests_per_minute` are limits per key, refused as the vendor refuses. A key is the last word of `Authorization`.

The answer echoes the words of the last user message (see `script`); `n` choices differ by a suffix ` (2)`. A tool call
has one argument, the first property of the function's schema, whose value is that echo.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from tests.simulators.compose import asked, compose
from tests.simulators.dialects import DIALECTS
from tests.simulators.dialects.openai import Dialect
from tests.simulators.http_server import Answer, Simulator
from tests.simulators.ledger import Call
from tests.simulators.limits import Gate
from tests.simulators.playback import perform
from tests.simulators.recordings import error_recording
from tests.simulators.script import ScriptError
from tests.simulators.speech import encode

JSON_TYPE = ("content-type", "application/json")


class OpenAICompatible(Simulator):
    """One of `openai`, `deepseek`, `cerebras`, `kimi`, `dashscope_compatible`, `huggingface`."""

    def __init__(
        self,
        dialect: str = "openai",
        *,
        keys: Collection[str] | None = None,
        concurrency: int | None = None,
        requests_per_minute: int | None = None,
    ) -> None:
        super().__init__()
        self.dialect = DIALECTS[dialect]
        self.name = dialect
        self.gate = Gate(keys, concurrency=concurrency, requests_per_minute=requests_per_minute)

    @property
    def base_url(self) -> str:
        return self.origin + self.dialect.base_path

    @property
    def settings(self) -> dict[str, str]:
        key = min(self.gate.keys) if self.gate.keys else "sk-simulated"
        return {f"{self.dialect.settings_prefix}_BASE_URL": self.base_url, self.dialect.key_setting: key}

    async def respond(self, call: Call, answer: Answer) -> None:
        """Route the call; what does not exist gets the vendor's 404."""
        if not self.gate.knows(call.key):
            await self._refuse(answer, self.dialect.key_error, "key")
            return
        route = call.path.rstrip("/")
        if call.method == "GET" and route.endswith("/models"):
            await answer.send(200, [JSON_TYPE], self.dialect.dump(self.dialect.model_list()))
        elif call.method == "GET" and "/models/" in route:
            await self._one_model(answer, route.partition("/models/")[2])
        elif call.method == "POST" and route.endswith(("/completions", "/embeddings")):
            await self._generate(call, answer, route)
        else:
            await answer.send(404, [JSON_TYPE], encode(self.dialect.error(404, f"no route {call.path}")))

    async def _refuse(self, answer: Answer, name: str, why: str) -> None:
        answer.call.notes["refused"] = why
        found = error_recording(name)
        await answer.send(found.status, found.headers, found.body)

    async def _one_model(self, answer: Answer, model: str) -> None:
        for entry in self.dialect.model_list()["data"]:
            if entry["id"] == model:
                await answer.send(200, [JSON_TYPE], self.dialect.dump(entry))
                return
        await answer.send(404, [JSON_TYPE], encode(self.dialect.error(404, f"The model `{model}` does not exist")))

    async def _generate(self, call: Call, answer: Answer, route: str) -> None:
        try:
            body = call.json()
            message = asked(body)
            script = self.control.script(call.key, str(body.get("model")), message)
        except ScriptError as problem:
            await answer.misused(problem)
            return
        except (ValueError, AttributeError):
            await answer.send(400, [JSON_TYPE], encode(self.dialect.error(400, "We could not parse the JSON body")))
            return
        dialect = self.dialect.for_model(str(body.get("model")).partition(",")[0])
        now = trio.current_time()
        if why := self.gate.refuses(call.key, self.ledger, now):
            await self._refuse(answer, dialect.concurrency_error if why == "concurrency" else dialect.rate_error, why)
        elif refusal := dialect.refusal(body):
            call.notes["refused"] = "parameters"
            await answer.send(refusal[0], [JSON_TYPE], refusal[1])
        else:
            material = compose(dialect, call, body, message, script)
            material.headers += [*dialect.headers, *self._limit_headers(dialect, call.key, now)]
            await perform(answer, script, material)

    def _limit_headers(self, dialect: Dialect, key: str, now: float) -> list[tuple[str, str]]:
        remaining = int(self.gate.bucket.level(key, now))
        facts = {
            "limit": self.gate.requests_per_minute,
            "remaining": remaining,
            "reset": self.gate.refill_seconds,
        }
        return [(name, value.format(**facts)) for name, value in dialect.limit_headers]
