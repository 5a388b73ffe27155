"""Read-only analyses of a model: execution, cost, comparison, statistics."""
