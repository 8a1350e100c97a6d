"""Dynamical mean-field theory: networks that learn features, in limits where training is a process of one neuron."""

from dynamics.theory.dmft.deep import DeepLimit, deep

__all__ = ["DeepLimit", "deep"]
