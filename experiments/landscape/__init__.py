"""The loss landscape itself: the boundary of trainability, slices and their invariances, hidden symmetries."""

FLAGSHIP = "fractal_boundary"
