"""Factorisations of several matrices one after another, without which XLA on CPUs can wait for itself for ever.

jaxlib hands the matrices of one LAPACK call to XLA's pool of threads and waits for them, at times in a thread of that
pool. When as many such calls wait as the pool has threads, two on two cores, none is left to do the work. Several come
together where the readings of a study's lanes are independent of each other. A call with one matrix does it itself.
Lanes that are split over several CPU devices are gathered for it, and each device then factorises them all.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend.core import JaxprEqn

from dynamics.program import jaxpr

MATRIX_AXES = {
    "cholesky": 2, "eig": 2, "eigh": 2, "hessenberg": 2, "householder_product": 2, "lu": 2, "ormqr": 2, "qr": 2,
    "schur": 2, "svd": 2, "triangular_solve": 2, "tridiagonal": 2, "tridiagonal_solve": 1,
}  # of the first operand of LAPACK's primitives; further axes lead, in all operands and results  # fmt: skip


def of_several_matrices(equation: JaxprEqn) -> bool:
    """Whether it is a call of LAPACK with more than one matrix."""
    axes = MATRIX_AXES.get(equation.primitive.name)
    return axes is not None and math.prod(jaxpr.shape(equation.invars[0])[:-axes]) > 1


def in_turn(equation: JaxprEqn, *values: Any) -> list[Any]:
    """Its results, a matrix at a time."""
    lanes = jaxpr.shape(equation.invars[0])[: -MATRIX_AXES[equation.primitive.name]]
    count = math.prod(lanes)
    flat = [value.reshape(count, *value.shape[len(lanes) :]) for value in values]
    found = jax.lax.map(lambda one: jaxpr.run(equation, one), flat)
    return [one.reshape(*lanes, *one.shape[1:]) for one in found]
