"""Scheduling and decoding: sequences, KV blocks, steps, and the engine that runs them."""
