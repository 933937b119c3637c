"""Benchmarks for a GPU that is available for minutes: jobs in order of value, until the time is up."""
