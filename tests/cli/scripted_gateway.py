"""A small real HTTP server that answers like a gateway, line by line as a test says, and notices who leaves."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-scripted-gateway-key"

Answer = Callable[["ScriptedRequest", dict[str, Any]], None]


class ScriptedRequest(BaseHTTPRequestHandler):
    """One request; `send_*` are for the answers of a test."""

    protocol_version = "HTTP/1.1"
    server: "ScriptedGateway"

    def do_GET(self) -> None:
        if not self._is_known():
            return
        if self.path == "/v1/models":
            self.send_json(200, {"object": "list", "data": [{"id": name} for name in self.server.models]})
        else:
            self.send_json(200, {"status": "ready"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._is_known():
            self.server.asked.append(body)
            try:
                self.server.answer(self, body)
            except OSError:
                self.server.left.set()

    def _is_known(self) -> bool:
        if self.headers["authorization"] == f"Bearer {KEY}" or self.path.startswith("/health"):
            return True
        self.send_json(401, {"error": {"message": "Incorrect API key.", "type": "x", "param": None, "code": None}})
        return False

    def send_json(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    def event(self, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def delta(self, **fields: str) -> None:
        self.event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})

    def end_well(self, tokens: int = 3) -> None:
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.event({"choices": [], "usage": {"completion_tokens": tokens}})
        self.event("[DONE]")

    def log_message(self, *_: object) -> None:
        pass


def repeat(request: ScriptedRequest, body: dict[str, Any]) -> None:
    """Answers with the last message, word by word."""
    request.begin_stream()
    for word in body["messages"][-1]["content"].split(" "):
        request.delta(content=f"<{word}>")
    request.end_well()


class ScriptedGateway(ThreadingHTTPServer):
    """`answer` makes the answers; `asked` holds the request bodies; `left` is set when a caller leaves in mid-answer."""

    daemon_threads = True

    def __init__(self, answer: Answer = repeat) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedRequest)
        self.answer = answer
        self.models = ["first", "second"]
        self.asked: list[dict[str, Any]] = []
        self.left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "ScriptedGateway":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
