"""One process per provider: claim a job, call the upstream, publish the answer."""
