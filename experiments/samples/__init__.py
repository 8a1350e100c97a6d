"""Samples: what more data, and more tasks, teach."""

FLAGSHIP = "in_context"
