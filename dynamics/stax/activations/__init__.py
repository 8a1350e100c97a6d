"""Pointwise nonlinearities by their dual activations."""
