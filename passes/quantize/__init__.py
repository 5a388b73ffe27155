"""Rewrites that change how numbers are represented."""
