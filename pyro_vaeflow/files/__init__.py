"""Tables that no memory holds: csv and Parquet read in pieces, fitted to and scored."""
