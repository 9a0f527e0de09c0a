"""Images as rows of features: on their way into a gallery or a search, or into a file."""
