"""qdengine against other engines on the same rows, weights, prompts and threads: `python benchmarks/peers --help`.

table.py says which engines there are, adapters/ how each is loaded and run, worker.py is the process in which one does,
link.py its other end, workload.py what all of them get, sections.py what is measured, report.py what is made of it.
"""
