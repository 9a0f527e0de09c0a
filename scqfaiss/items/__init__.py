"""What an id means to a person: title, label, image and further columns, from a CSV, JSON lines or Parquet file."""
