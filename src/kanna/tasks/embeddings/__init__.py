"""Sentence embeddings: what modules.json says, how they are computed, and scores of rows about them."""
