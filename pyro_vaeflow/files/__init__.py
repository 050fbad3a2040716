"""Tables in files of any size: csv and Parquet read in chunks, trained on and scored."""
