"""The programs that ship, and their parts: flows, likelihoods, priors. What a modeler edits."""
