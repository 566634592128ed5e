"""From journals to Parquet: what is sealed, how it is shipped, and how it is read and checked."""
