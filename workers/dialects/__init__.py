"""Translations that several upstreams share; pure."""
