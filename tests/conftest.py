"""Fixtures for all tests. Each is defined beside what it makes; here they are only made known to pytest."""

from tests.redis_server import redis_server

__all__ = ["redis_server"]
