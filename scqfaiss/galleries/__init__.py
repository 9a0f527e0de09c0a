"""Galleries (index file plus metadata): read, search, export, edit, inspect."""
