"""Tables of other libraries, by way of Arrow: Parquet files, tables, frames and datasets look the same from here."""
