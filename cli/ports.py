"""The port of the gateway: is it free, and may all our frontends share it."""

import socket


class PortTaken(RuntimeError):
    """Somebody listens there already, or the address is not ours; the text says what to do."""


def hold(host: str, port: int) -> tuple[socket.socket, int]:
    """Reserve the port for this process and its children; the socket to keep open meanwhile, and the port's number.

    Each frontend listens with a socket of its own (SO_REUSEPORT). The same option would let a second gateway of the same
    user slip onto the port unnoticed and take half of the callers, so first a socket without it asks for the port alone.
    The socket that is kept is bound but does not listen: no caller ever lands on it. Port 0 becomes a free one.

    Raises:
        PortTaken: with a sentence for a person.
    """
    with _bound(host, port, shared=False) as alone:
        number = int(alone.getsockname()[1])
    return _bound(host, number, shared=True), number


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        if not shared:
            sock.listen(1)  # two bound sockets can live side by side; two that listen cannot
    except OSError as error:
        sock.close()
        raise PortTaken(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. "
            "Stop what listens there, or choose another with SLUICE_PORT=8089 (and SLUICE_HOST)."
        ) from error
    return sock


def reachable(host: str) -> str:
    """The host part of a URL under which this machine reaches a server that listens on `host`."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host
