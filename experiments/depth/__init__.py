"""Depth and width: what initialisation alone decides, exactly."""

FLAGSHIP = "over_n"
