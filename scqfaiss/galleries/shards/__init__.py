"""Galleries in several files: a folder NAME.shards of plain .faissindex files, and a manifest that names them."""
