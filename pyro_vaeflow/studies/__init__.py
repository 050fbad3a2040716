"""Questions put to finished runs, each one command: gaps, draws, flows, scores, potentials."""
