"""Command line, compress, reports and benchmarks."""
