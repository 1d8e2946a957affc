"""Health check of a container: `python -m cli.alive frontend`, or a provider's name. Status 0 means well.

A frontend is asked whether it is ready. A provider is well while at least one of its workers advertises itself in Redis.
"""

import http.client
import sys

import redis

from cli.advertisements import live_workers
from cli.ports import reachable
from shared.settings import SettingsError, load_frontend, load_worker, process_environment
from shared.settings.providers import canonical

SECONDS = 3.0


def frontend_is_ready() -> bool:
    """Whether the frontend of this container would serve a caller now."""
    settings = load_frontend(process_environment())
    connection = http.client.HTTPConnection(reachable(settings.host).strip("[]"), settings.port, timeout=SECONDS)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def a_worker_is_alive(provider: str) -> bool:
    """Whether any worker of the provider advertises itself."""
    settings = load_worker(provider, process_environment())
    server = redis.Redis.from_url(settings.redis_url.reveal(), socket_timeout=SECONDS, socket_connect_timeout=SECONDS)
    with server:
        return any(worker.provider == canonical(provider) for worker in live_workers(server))


def main(name: str) -> int:
    """0 if `name` (`frontend` or a provider) is well, else 1 and a sentence on standard error."""
    try:
        well = frontend_is_ready() if name == "frontend" else a_worker_is_alive(name)
    except (OSError, http.client.HTTPException, redis.RedisError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else "frontend"))
