"""Pruning within a stock transformers model: what evs.transformers binds to it, and what that needs."""
