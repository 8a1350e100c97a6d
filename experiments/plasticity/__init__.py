"""Plasticity: why networks that have learned much learn the next task more slowly, and what keeps them able to."""

FLAGSHIP = "solvable"
