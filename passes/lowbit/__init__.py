"""Weights of a few bits: each one of a short list of numbers, chosen where the layer's output misses least."""
