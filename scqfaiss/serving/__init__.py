"""`scqfaiss serve`: galleries behind HTTP, and the page people search with."""
