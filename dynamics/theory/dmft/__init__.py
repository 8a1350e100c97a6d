"""Dynamical mean-field theory: training where features move, in limits where it is a process of one neuron.

``deep``: infinite width at a fixed data set and richness. ``committee``: committees and generalised linear models, P
and D at a fixed ratio. ``proportional``: the same limit of the lazy-to-rich grokking model, whose growing direction is
kept as a coherent vector.
"""

from dynamics.theory.dmft.committee import committee
from dynamics.theory.dmft.deep import DeepLimit, deep
from dynamics.theory.dmft.proportional import Inputs, draw_inputs, inputs_of, proportional, seed_share

__all__ = ["DeepLimit", "Inputs", "committee", "deep", "draw_inputs", "inputs_of", "proportional", "seed_share"]
