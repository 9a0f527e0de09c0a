"""The demo: digits inside the package, trained, exported, searched and judged."""
