"""Tables in memory: what columns hold, and their numbers for the programs."""
