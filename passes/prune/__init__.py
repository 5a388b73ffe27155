"""Rewrites that remove what a model can spare: channels, weights, blocks."""
