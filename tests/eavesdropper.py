"""What somebody would learn who can read Redis: all that passes through it, and all that it keeps."""

import socket
import threading

from tests.redis_server import RedisServer


class Eavesdropper:
    """Everything that Redis is told, as MONITOR shows it."""

    def __init__(self, server: RedisServer) -> None:
        self.heard = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(server.socket_path))
        self._socket.sendall(b"MONITOR\r\n")
        assert self._socket.recv(5) == b"+OK\r\n"
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while piece := self._socket.recv(65536):
            self.heard += piece

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def everything_in(server: RedisServer) -> bytes:
    """All keys and values, as Redis would save them."""
    keys = server.client.keys("*")
    return b"\n".join([*keys, *(dumped for key in keys if (dumped := server.client.dump(key)))])
