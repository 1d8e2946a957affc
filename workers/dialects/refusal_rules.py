"""Which of our kinds an upstream's error is: one table for each vendor, read from the top, the first row that fits counts.

A row fits when the status is among `statuses`, `code` or `type` is among `words`, and `says` is found in the message, as far
as each is given. Words and messages are compared without regard to case. What no row fits is decided by the HTTP status
(`BY_STATUS`).
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple


class Rule(NamedTuple):
    """One row. `says`: a regular expression, searched for in the message."""

    kind: str
    words: str = ""
    says: str = ""
    statuses: Sequence[int] = ()

    def fits(self, status: int | None, words: set[str], message: str) -> bool:
        return (
            (not self.statuses or status in self.statuses)
            and (not self.words or not words.isdisjoint(self.words.split()))
            and (not self.says or re.search(self.says, message, re.IGNORECASE) is not None)
        )


Rules = tuple[Rule, ...]

BY_STATUS: Final = {
    400: "invalid_request",
    401: "credential_invalid",
    402: "billing",
    403: "permission",
    404: "model_not_found",
    405: "upstream_config",
    408: "timeout",
    413: "payload_too_large",
    415: "invalid_request",
    422: "invalid_request",
    429: "rate_limit",
    503: "overloaded",
    504: "timeout",
    524: "timeout",  # a CDN's own: the origin did not answer in time
    529: "overloaded",
}

OPENAI: Final[Rules] = (
    Rule("context_length", "context_length_exceeded"),
    Rule("unsupported_parameter", "unsupported_parameter"),
    Rule("content_filter", "content_policy_violation content_filter"),
    Rule("upstream_config", "invalid_organization mismatched_organization mismatched_project"),
    Rule("credential_invalid", "invalid_api_key"),
    Rule("permission", "unsupported_country_region_territory"),
    Rule("model_not_found", "model_not_found"),
    Rule(
        "billing",
        "insufficient_quota credit_balance_exhausted organization_spend_limit_exceeded project_spend_limit_exceeded"
        " organization_usage_limit_exceeded billing_not_active billing_hard_limit_reached",
    ),
    Rule("overloaded", "slow_down"),
    Rule("rate_limit", "rate_limit_exceeded"),
    Rule("upstream_error", "server_error", statuses=(400, 500)),
)

# The code is `invalid_request_error` for nearly everything, 401 and 402 included: status first, then the message.
DEEPSEEK: Final[Rules] = (
    Rule("model_not_found", says="^model not exist", statuses=(400,)),
    Rule("context_length", says="maximum context length", statuses=(400,)),
    Rule("unsupported_parameter", says="does not support", statuses=(400,)),
    Rule("content_filter", says="content exists risk", statuses=(400,)),
)

# A 429 comes as often from the queue as from a quota; only the code tells whether the credential is at fault.
CEREBRAS: Final[Rules] = (
    Rule("unsupported_parameter", "wrong_api_format", says="unsupported"),
    Rule("context_length", "context_length_exceeded"),
    Rule("credential_invalid", "wrong_api_key"),
    Rule("billing", "payment_required"),
    Rule("model_not_found", "model_not_found"),
    Rule("overloaded", "queue_exceeded"),
    Rule("overloaded", says="high traffic", statuses=(429,)),
    Rule("rate_limit", "request_quota_exceeded token_quota_exceeded"),
)

# No codes, only types.
KIMI: Final[Rules] = (
    Rule("content_filter", "content_filter"),
    Rule("context_length", "invalid_request_error", says="token length too long|exceeded model token limit"),
    Rule("credential_invalid", "invalid_authentication_error incorrect_api_key_error"),
    Rule("permission", "permission_denied_error"),
    Rule("model_not_found", "resource_not_found_error"),
    Rule("overloaded", "engine_overloaded_error"),
    Rule("billing", "exceeded_current_quota_error"),
    Rule("rate_limit", "rate_limit_reached_error"),
    Rule("upstream_error", "server_error unexpected_output"),
)

# Native and lower-case spellings, both dialects. `insufficient_quota` is about tokens a minute, not about money.
DASHSCOPE: Final[Rules] = (
    Rule("context_length", says="range of input length should be|maximum context length"),
    Rule("content_filter", "datainspectionfailed data_inspection_failed faqruleblocked customroleblocked"),
    Rule(
        "billing", "arrearage allocationquota.freetieronly prepaidbilloverdue postpaidbilloverdue commoditynotpurchased"
    ),
    Rule("billing", "throttling.allocationquota insufficient_quota", says="free allocated quota|free tier"),
    Rule(
        "rate_limit",
        "throttling throttling.ratequota limitrequests limit_requests throttling.burstrate limit_burst_rate"
        " throttling.concurrency throttling.allocationquota insufficient_quota",
    ),
    Rule("credential_invalid", "invalidapikey invalid_api_key"),
    Rule(
        "permission",
        "accessdenied access_denied workspace.accessdenied model.accessdenied accessdenied.unpurchased",
    ),
    Rule("model_not_found", "modelnotfound model_not_found model.notexist"),
    Rule("upstream_config", "workspacenotfound notfound invalidurl"),
    Rule("timeout", "requesttimeout gatewaytimeout"),
    Rule("payload_too_large", "badrequest.toolarge"),
    Rule(
        "upstream_error",
        "internalerror internalerror.algo internalerror.timeout systemerror rewritefailed retrivalfailed"
        " appprocessfailed modelservicefailed invokepluginfailed",
    ),
    Rule("overloaded", "modelunavailable serviceunavailable"),
    Rule(
        "invalid_request",
        "invalidparameter invalid_parameter_error unsupportedoperation badrequest.emptyinput badrequest.emptyparameters"
        " badrequest.emptymodel invalidschema invalidschemaformat flownotpublished badrequest.inputdownloadfailed"
        " badrequest.unsupportedfileformat",
    ),
)

# The router passes on what its providers say, in their shapes and words.
HUGGING_FACE: Final[Rules] = (
    Rule("model_not_found", "model_not_supported"),
    Rule("credential_invalid", statuses=(403,), says="sufficient permissions|authentication method|token"),
    Rule("overloaded", "overloaded"),
    Rule("invalid_request", "validation"),
    Rule("upstream_error", "generation incomplete_generation"),
    *CEREBRAS,
    *OPENAI,
)

# No codes at all. A 403 in JSON is about the signature or the clock; an unknown conversation is the upstream's own doing.
FLOWGPT: Final[Rules] = (
    Rule("upstream_config", statuses=(403,)),
    Rule("upstream_error", statuses=(404,)),
)

# Supabase's auth service and functions, and OpenAI's own texts behind them. The words of a socket's refusal come as a 401.
LANGFAST: Final[Rules] = (
    Rule("upstream_config", says="invalid api key|no api key found|invalid namespace", statuses=(401,)),
    Rule("upstream_config", "anonymous_provider_disabled captcha_failed signup_disabled"),
    Rule("rate_limit", "over_request_rate_limit"),
    Rule("credential_invalid", "bad_jwt session_not_found session_expired user_not_found user_banned"),
    Rule("upstream_config", statuses=(404,)),
    Rule("unsupported_parameter", says="^unsupported (parameter|value)"),
    Rule("context_length", says="maximum context length"),
    Rule("rate_limit", says="rate limit"),
    Rule("content_filter", says="content management policy|content policy"),
)
