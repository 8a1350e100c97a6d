"""Distillation: networks that learn from networks."""

FLAGSHIP = "self"
