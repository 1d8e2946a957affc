"""The door: one script that decides whether a job may wait for a worker, and lets it in or not, all or nothing."""
