"""Influence: what samples do to one another through their gradients."""

FLAGSHIP = "coherence"
