"""Embeddings trained without labels. One method, one file."""
