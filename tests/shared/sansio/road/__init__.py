"""A small world to try the road's machines in: simulated time, and everything that can go wrong, decided by one seed.

`Owner` follows the rules of `frontend/jobs.py` and `frontend/watch.py`, `Worker` those of `workers/outbox.py`,
`workers/attempt.py`, `workers/intake.py` and `workers/worker.py`; both use the real machines for all that matters. Between
them lies a Redis that loses, doubles, delays and reorders messages, is cut off, forgets its queue or goes back in time.
"""
