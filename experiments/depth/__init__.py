"""Depth: what initialisation alone decides, in exact theories at infinite and finite width."""

FLAGSHIP = "over_n"
