"""Dynamical mean field theory: training where features move, as the network or its data grow without bound.

``committee``: committees and generalised linear models, P and D at a fixed ratio. ``proportional``: the same limit of
the lazy-to-rich grokking model, whose growing direction is kept as a coherent vector.
"""

from dynamics.theory.dmft.committee import committee

__all__ = ["committee"]
