"""Tests of the Redis link."""
