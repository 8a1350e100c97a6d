"""Layers, their combinators, and what makes a layer out of its rules."""

from dynamics.stax.layers.layer import KernelFn, Needs, kernel_layer, layer

__all__ = ["KernelFn", "Needs", "kernel_layer", "layer"]
