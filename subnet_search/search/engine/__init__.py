"""How trials are run: scheduler, worker, lease, pruner."""
