"""Sweeps over settings that are no axis, workers that share a run, and phase diagrams."""
