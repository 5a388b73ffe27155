"""Rewrites, one family a folder, and the pass manager that runs them. Imports `ir` only."""
