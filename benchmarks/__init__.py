"""Speed, measured: the official procedures, written anew and plainly, against the bench's own, in one process.

`make bench` prints the table and writes results/performance/cpu.json and docs/performance.md; see `benchmarks/__main__.py`.
"""
