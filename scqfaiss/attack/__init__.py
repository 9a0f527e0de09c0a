"""Adversarial queries: small changes of a query that send a search elsewhere, and what they cost."""
