"""Geometries of descent: potentials of mirror maps, norms with their duals."""

from dynamics.geometry.norms import NORMS, Dual, dual, norm_dual
from dynamics.geometry.potentials import Potential, power, signed_entropy

__all__ = ["NORMS", "Dual", "Potential", "dual", "norm_dual", "power", "signed_entropy"]
