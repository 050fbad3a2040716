"""Training, scores and diagnostics of any pair of Pyro programs that opens a plate of rows."""
