"""Tests of Sluice; the folders mirror the source tree."""
