"""What callers send: the typed view that is checked. What goes on is the caller's own text; unknown fields pass through.

Only types are checked here, and the limits that protect the gateway. Whether a value makes sense to a model is the
upstream's to say.
"""

import re
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from shared.errors import GatewayError, fail
from shared.sansio.surrogates import check_request_text

MOST_MESSAGES: Final = 2048
MOST_TOOLS: Final = 128
MOST_CHOICES: Final = 8
MOST_TOKENS: Final = 10_000_000
"""Of an answer: more than any model gives, so that limits and budgets are reckoned with numbers that may be true."""
LONGEST_MODEL: Final = 256

Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

T = TypeVar("T", bound=msgspec.Struct)


class ContentPart(msgspec.Struct):
    """A part of a message: `text`, `image_url`, `input_audio`, `file`, `refusal`, or a kind that we do not know."""

    type: str
    text: Any = None


class ChatMessage(msgspec.Struct):
    """One message of the history."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Tool(msgspec.Struct):
    type: str


class ChatRequest(msgspec.Struct):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MOST_MESSAGES)]
    model: Annotated[str, Meta(max_length=LONGEST_MODEL)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: Annotated[int, Meta(le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Meta(le=MOST_TOKENS)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


class CompletionRequest(msgspec.Struct):
    """`POST /v1/completions`. The prompt may be texts or tokens, one or several."""

    prompt: str | list[Any] | None = None
    model: Annotated[str, Meta(max_length=LONGEST_MODEL)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    max_tokens: Annotated[int, Meta(le=MOST_TOKENS)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    logprobs: int | None = None
    echo: bool | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: Seed | None = None
    user: str | None = None


class EmbeddingRequest(msgspec.Struct):
    """`POST /v1/embeddings`. The input may be texts or tokens, one or several."""

    input: str | list[Any]
    model: Annotated[str, Meta(max_length=LONGEST_MODEL)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


Request = ChatRequest | CompletionRequest | EmbeddingRequest


_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]*)`")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`")
_LIMIT = re.compile(r"^Expected `(?P<type>[^`]*)` (?:of length )?(?P<side>[<>]=) (?P<limit>\d+)$")
_WORDS = {
    "str": "a string", "int": "an integer", "float": "a decimal", "bool": "a boolean", "null": "null",
    "array": "an array", "object": "an object",
}  # fmt: skip
_GOT_WORDS = _WORDS | {"float": "a decimal number"}
_LIMITS = {
    "int >=": ("integer below minimum value", "a value >=", "integer_below_min_value"),
    "int <=": ("integer above maximum value", "a value <=", "integer_above_max_value"),
    "str <=": ("string too long", "a string with maximum length", "string_above_max_length"),
    "array <=": ("array too long", "an array with maximum length", "array_above_max_length"),
    "array >=": ("empty array", "an array with minimum length", "empty_array"),
}
"""A limit as msgspec says it: OpenAI's words, and its code."""


def parse(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """The checked view of a request body. Raises `GatewayError` `invalid_request` with `param` as OpenAI gives it."""
    check_request_text(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _complaint(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = str(error) if isinstance(error, msgspec.DecodeError) else "it is nested too deeply or not UTF-8"
        raise fail(
            "invalid_request", f"We could not parse the JSON body of your request: {detail}", code="invalid_json"
        ) from None


def _complaint(text: str) -> GatewayError:
    """OpenAI's words for what msgspec says."""
    found = _PATH.search(text)
    path = found["path"].replace("[...]", "") if found else ""
    reason = text[: found.start()] if found else text
    if missing := _MISSING.match(reason):
        param = f"{path}.{missing['field']}" if path else missing["field"]
        return fail(
            "invalid_request", f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    if unknown := _UNKNOWN.match(reason):
        param = (f"{path}.{unknown['field']}" if path else unknown["field"])[:100]
        return fail("invalid_request", f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if expected := _EXPECTED.match(reason):
        types = [name for name in expected["expected"].split(" | ") if name != "null"]
        wanted = ("one of " if len(types) > 1 else "") + " or ".join(_WORDS.get(name, name) for name in types)
        got = _GOT_WORDS.get(expected["got"], expected["got"])
        if not path:
            return fail("invalid_request", f"The request body must be {wanted}, not {got}.", code="invalid_type")
        return fail(
            "invalid_request",
            f"Invalid type for '{path}': expected {wanted}, but got {got} instead.",
            param=path,
            code="invalid_type",
        )
    limit = _LIMIT.match(reason)
    if limit and (words := _LIMITS.get(f"{limit['type']} {limit['side']}")):
        problem, wanted, code = words
        message = f"Invalid '{path}': {problem}. Expected {wanted} {limit['limit']}."
        return fail("invalid_request", message, param=path, code=code)
    return fail("invalid_request", f"Invalid value for '{path}': {reason}.", param=path or None, code="invalid_value")
