"""How good and how fast: ROUGE, copying, throughput and latency."""
