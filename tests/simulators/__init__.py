"""Simulated upstreams that speak the real wire on loopback, misbehave on command, and keep a ledger of every call."""
