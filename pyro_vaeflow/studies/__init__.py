"""Studies, each one command: gaps, draws, flows and scores of finished runs; fits of potentials."""
