"""Speed, measured: the official procedures, written anew and plainly, against the bench's own, in one process.

`make bench` prints the table and writes results/performance/cpu-<processor>.json and docs/performance.md; see `__main__`.
"""
