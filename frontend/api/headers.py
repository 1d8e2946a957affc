"""Headers that mean something here, of requests to models and of answers, for `/openapi.json` and `/docs`."""

from typing import Final

REQUEST_HEADERS: Final = {
    "x-sluice-max-wait": "Longest wait for a worker, in seconds; then the request is refused.",
    "x-sluice-priority": "`low`: wait behind everybody's normal requests.",
    "x-sluice-cache": "Seconds for which an identical request of the same key may be answered from memory, or `off`.",
}

ANSWER_HEADERS: Final = {
    "x-request-id": "The name of the request in the gateway's logs; on every answer.",
    "x-sluice-provider": "Who answered, or failed last.",
    "x-sluice-attempts": "How often a worker began with the request.",
    "x-sluice-queue-ms": "How long the request waited for a worker, all attempts together.",
    "x-sluice-cache": "`hit`: the answer comes from memory. `miss`: it may be kept now.",
    "age": "How old a kept answer is, in seconds.",
    "x-sluice-dropped-parameters": "What the upstream could not honour, where dropping was asked for.",
    "openai-processing-ms": "Time to the first byte.",
    "x-ratelimit-limit-requests": "Requests a minute that the key may.",
    "x-ratelimit-remaining-requests": "How many of them are left now.",
    "x-ratelimit-reset-requests": "When all of them will be free again.",
    "x-ratelimit-limit-tokens": "Tokens a minute that the key may.",
    "x-ratelimit-remaining-tokens": "How many of them are left now.",
    "x-ratelimit-reset-tokens": "When all of them will be free again.",
    "retry-after": "Seconds after which another try makes sense.",
    "retry-after-ms": "The same in milliseconds.",
    "x-should-retry": "What OpenAI's clients do about an error: `true` or `false`; without it, what they think right.",
}
