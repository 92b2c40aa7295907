"""Benchmarks, one file each: commands that print ratios within one run."""
