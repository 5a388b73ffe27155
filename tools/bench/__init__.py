"""Benchmarks: every published figure stands behind a command here."""
