"""The listening socket, with the TCP options that every accepted connection inherits."""

import errno
import resource
import socket

from frontend.server.settings import ServerSettings

RESERVED_DESCRIPTORS = 96
"""Left for Redis links, logs and the short refusals; the rest of RLIMIT_NOFILE may be connections."""
UNSENT_BYTES = 16 * 1024
KEEP_ALIVE_PROBES = 3


def open_listener(settings: ServerSettings) -> socket.socket:
    """A bound, listening, non-blocking TCP socket; port 0 takes a free one. Raises OSError if the address is taken.

    On Linux an accepted socket starts with the options of its listener (tcp(7)), so they cost nothing per connection:

    * `TCP_USER_TIMEOUT`: a client whose window stays shut, or that vanished with data under way, is a broken connection.
    * keep-alive probes: the same for a client that vanished while nothing was under way.
    * `TCP_NODELAY`: a token leaves at once.
    * `TCP_NOTSENT_LOWAT`: the kernel refuses to hoard what the client does not take, so a stalled reader shows early.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for level, option, value in _inherited_options(settings.write_stall_seconds):
            listener.setsockopt(level, option, value)
        listener.bind((settings.host, settings.port))
        listener.listen(settings.backlog)
    except OSError as error:
        listener.close()
        shared = " Frontends of one user can share it: SLUICE_SHARE_PORT=on." if error.errno == errno.EADDRINUSE else ""
        raise OSError(
            error.errno,
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}. SLUICE_PORT chooses another.{shared}",
        ) from None
    except BaseException:
        listener.close()
        raise
    return listener


def _inherited_options(stall_seconds: float) -> list[tuple[int, int, int]]:
    probe_seconds = max(1, round(stall_seconds / (KEEP_ALIVE_PROBES + 1)))
    named = [
        ("TCP_NODELAY", 1),
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
        ("TCP_USER_TIMEOUT", max(1, round(stall_seconds * 1000))),
        ("TCP_KEEPIDLE", probe_seconds),
        ("TCP_KEEPINTVL", probe_seconds),
        ("TCP_KEEPCNT", KEEP_ALIVE_PROBES),
    ]
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    # What a system does not know (macOS lacks TCP_USER_TIMEOUT) it does without: the server's own clocks remain.
    options += [(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in named if hasattr(socket, name)]
    return options


def connection_limit(max_connections: int) -> int:
    """How many connections this process can hold at once: the setting, or what its file descriptors allow."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max_connections
    return max(1, min(max_connections, soft - RESERVED_DESCRIPTORS))
