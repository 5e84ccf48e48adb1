"""Running trials: scheduler, worker, lease, pruner."""
