"""The credential pool of a provider, shared through Redis by all of its workers."""
