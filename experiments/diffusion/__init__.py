"""Networks that denoise: what they learn from few samples and when they generalise."""

FLAGSHIP = "two_halves"
