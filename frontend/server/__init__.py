"""HTTP/1.1 for the frontend: Hypercorn's protocol on sockets of our own, and what Quart-Trio needs to stream on it.

`serving.py` accepts and stops; `connection.py` serves one client; `request_parser.py` reads its bytes, `socket_writer.py`
writes ours, `app_call.py` calls the app. `hypercorn_parts.py` and `quart_parts.py` say what is relied on below and above.
"""

from frontend.server.on_leave import OnLeave, on_leave
from frontend.server.quart_parts import StreamBody, prepare
from frontend.server.serving import serve
from frontend.server.settings import ServerSettings

__all__ = ["OnLeave", "ServerSettings", "StreamBody", "on_leave", "prepare", "serve"]
