"""What frontends and workers agree on; imports neither."""
