"""The Kernel, its algebra, and how inputs become one: what no layer need know about another."""

from dynamics.stax.kernel.algebra import safe_reciprocal, safe_sqrt
from dynamics.stax.kernel.kernel import Kernel

__all__ = ["Kernel", "safe_reciprocal", "safe_sqrt"]
