"""Our codes beside FAISS's own, measured row by row into results files."""
