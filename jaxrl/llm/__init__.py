"""Language models: a decoder-only transformer, its checkpoints, tokenizers, generation, adapters and losses."""
