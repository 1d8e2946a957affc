"""OpenAI's families of chat models: what each can honour, for upstreams that offer them without OpenAI's own checks.

Names and numbers are those of OpenAI's model pages; a name that no family claims is taken for a plain chat model.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

SAMPLING: Final = frozenset({"temperature", "top_p", "frequency_penalty", "presence_penalty"})
_TEXT: Final = frozenset({"text"})
_OBJECT: Final = _TEXT | {"json_object"}
_SCHEMA: Final = _OBJECT | {"json_schema"}


class Family(NamedTuple):
    """What models of one kind can do.

    `most_tokens`: of an answer. `instructions`: the role of what the caller calls system or developer messages; `user`: it has
    none, they stand at the beginning of the first user message. `formats`: of the answer; none: the parameter is not known.
    `efforts`: values of `reasoning_effort`. `honoured`: further parameters that are passed on as they are.
    """

    most_tokens: int
    instructions: Literal["system", "developer", "user"] = "system"
    formats: frozenset[str] = _SCHEMA
    honoured: frozenset[str] = SAMPLING
    efforts: tuple[str, ...] = ()


_REASONING: Final = Family(100_000, "developer", _TEXT, frozenset(), ("low", "medium", "high"))

FAMILIES: Final[Sequence[tuple[str, Family]]] = (
    ("gpt-4.1", Family(32_768)),
    ("gpt-4o", Family(16_384)),
    ("gpt-4.5", Family(16_384)),
    ("gpt-4", Family(4096, formats=_OBJECT)),
    ("gpt-3.5", Family(4096, formats=_OBJECT)),
    ("o1-mini", Family(65_536, "user", frozenset(), frozenset())),
    *((name, _REASONING) for name in ("o1", "o3", "o4")),
    (
        "gpt-5",
        Family(
            128_000,
            "developer",
            _TEXT,
            frozenset({"verbosity", "summary"}),
            ("minimal", "low", "medium", "high"),
        ),
    ),
)
"""By how the model's name begins; the first that fits."""

UNKNOWN: Final = Family(16_384)


def family_of(model: str) -> Family:
    return next((family for beginning, family in FAMILIES if model.startswith(beginning)), UNKNOWN)


def instructed(messages: Iterable[dict[str, str]], family: Family) -> list[dict[str, str]]:
    """`messages` (role and text each) with system and developer messages as this family wants them."""
    system = ("system", "developer")
    if family.instructions != "user":
        return [
            {**message, "role": family.instructions} if message["role"] in system else message for message in messages
        ]
    texts, rest = [], []
    for message in messages:
        if message["role"] in system:
            texts.append(message["content"])
        else:
            rest.append(message)
    if not texts:
        return rest
    first = next((position for position, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": "\n\n".join(texts)}, *rest]
    rest[first] = {**rest[first], "content": "\n\n".join([*texts, rest[first]["content"]])}
    return rest
