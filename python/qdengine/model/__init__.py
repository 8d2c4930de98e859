"""The models: `reference` defines them (and is what training trains), `decoder` runs them over a paged KV cache."""
