"""Benchmarks of the optimizer step: workloads, contenders, timing, reports."""
