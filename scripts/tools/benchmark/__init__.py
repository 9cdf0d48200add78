"""Measures the speed of this project's parts; every figure in `docs/benchmarks.md` comes from here."""
