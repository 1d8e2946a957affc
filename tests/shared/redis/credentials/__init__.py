"""The credential pool, against a real Redis."""
