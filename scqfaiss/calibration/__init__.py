"""What held-out rows tell of the scores of codes: tables, promises, and how they are measured. NumPy only."""
