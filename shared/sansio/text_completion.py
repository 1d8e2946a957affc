"""Events in, OpenAI's legacy text completions out: as `completion.py`, with a text where a chat has a message.

There is no role, no thinking and no tool; whatever an upstream says of these is left out. Chunks and whole answers are called
`text_completion` alike.
"""

from typing import Any

import msgspec

from shared.sansio.completion import Completion, Message, usage_fields
from shared.schema.events import Delta, Finish

_encode = msgspec.json.Encoder().encode
_NOTHING = msgspec.Raw(b'""')


class TextRenderer(Completion):
    """Renders the chunks of a stream. Parameters as those of `ChunkRenderer`."""

    def __init__(
        self, *, fallback_id: str, created: int, model: str, include_usage: bool = False, prompt_bytes: int = 0
    ) -> None:
        super().__init__(fallback_id=fallback_id, created=created, model=model, prompt_bytes=prompt_bytes)
        self._include_usage = include_usage
        self._begun: set[int] = set()

    @property
    def started(self) -> bool:
        return bool(self._begun)

    def _delta(self, delta: Delta) -> list[bytes]:
        text = delta.fields.get("content")
        if text is None and delta.logprobs is None:
            return []
        self._begun.add(delta.choice)
        rendered = msgspec.Raw(_encode(text)) if text is not None else _NOTHING
        self.text_bytes += len(rendered)
        return [self._chunk(delta.choice, rendered, delta.logprobs, None)]

    def _finish(self, finish: Finish) -> list[bytes]:
        self._begun.add(finish.choice)
        self.finish_reasons[finish.choice] = finish.reason
        return [self._chunk(finish.choice, _NOTHING, None, finish.reason)]

    def _all_finished(self) -> bool:
        return self._begun <= self.finish_reasons.keys()

    def _last(self) -> list[bytes]:
        if not self._include_usage or self.usage is None:
            return []
        return [_encode(self._frame() | {"choices": [], "usage": usage_fields(self.usage)})]

    def _chunk(self, choice: int, text: msgspec.Raw, logprobs: msgspec.Raw | None, reason: str | None) -> bytes:
        shown = {"text": text, "index": choice, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._include_usage else {}
        return _encode(self._frame() | {"choices": [shown]} | usage)

    def _frame(self) -> dict[str, Any]:
        return self._identity("text_completion") | self._said()


class TextAssembler(Completion):
    """Assembles the one object of an answer that is not streamed; `feed` returns nothing, `end` the one body."""

    def __init__(self, *, fallback_id: str, created: int, model: str, prompt_bytes: int = 0) -> None:
        super().__init__(fallback_id=fallback_id, created=created, model=model, prompt_bytes=prompt_bytes)
        self._texts: dict[int, Message] = {}

    @property
    def started(self) -> bool:
        return bool(self._texts)

    def _delta(self, delta: Delta) -> list[bytes]:
        text = self._texts.setdefault(delta.choice, Message())
        if (content := delta.fields.get("content")) is not None:
            self.text_bytes += text.add("content", content)
        if delta.logprobs is not None:
            text.add_logprobs(delta.logprobs)
        return []

    def _finish(self, finish: Finish) -> list[bytes]:
        self._texts.setdefault(finish.choice, Message())
        self.finish_reasons[finish.choice] = finish.reason
        return []

    def _all_finished(self) -> bool:
        return self._texts.keys() <= self.finish_reasons.keys()

    def _last(self) -> list[bytes]:
        assert self.usage is not None
        choices = [
            {
                "text": text.fields()["content"],
                "index": choice,
                "logprobs": text.logprobs,
                "finish_reason": self.finish_reasons[choice],
            }
            for choice, text in sorted(self._texts.items())
        ]
        frame = self._identity("text_completion") | {"choices": choices, "usage": usage_fields(self.usage)}
        return [_encode(frame | self._said())]
