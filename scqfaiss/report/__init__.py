"""Results of benchmarks as one page."""
