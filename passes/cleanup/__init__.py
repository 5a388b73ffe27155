"""Rewrites that keep the function: clean the graph, fold what can be folded."""
