"""Shards on many machines: Ray schedules, retries and moves; here stand encoding, searching and merging."""
