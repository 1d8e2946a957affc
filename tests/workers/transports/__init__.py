"""Tests of the transports, against real sockets and real TLS on loopback."""
