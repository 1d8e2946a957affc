"""The name of a request in headers, logs and jobs."""

import secrets


def new_request_id() -> str:
    """Random, and never the caller's: an id that somebody else chose proves nothing."""
    return f"req_{secrets.token_hex(16)}"
