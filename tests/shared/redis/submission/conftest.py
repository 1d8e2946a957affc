"""A door of its own for each test."""

import pytest

from tests.redis_server import RedisServer
from tests.shared.redis.submission.door import Door


@pytest.fixture
def door(redis_server: RedisServer) -> Door:
    door = Door(redis_server.client)
    door.grant()
    return door
