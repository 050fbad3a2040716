"""Tables in: columns and their kinds, numbers for the programs, data sets, files of any size."""
