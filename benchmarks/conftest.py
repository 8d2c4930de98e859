collect_ignore = ["bench_attention.py", "bench_draft.py", "bench_ops.py", "bench_step.py"]  # scripts, not tests
