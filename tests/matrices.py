"""Operators as dense matrices: the reference that tests compare with, each made by one program."""

import jax
import jax.numpy as jnp
import numpy as np


def dense(operator):
    """The matrix of an operator that is there already."""
    return np.asarray(jax.jit(jax.vmap(operator.matvec))(jnp.eye(operator.size, dtype=operator.dtype)))


def dense_of(make, objective, params, batch, **how):
    """The matrix of ``make(objective, params, batch, **how)``, which is made in the same program."""

    def matrix(params, batch):
        operator = make(objective, params, batch, **how)
        return jax.vmap(operator.matvec)(jnp.eye(operator.size, dtype=operator.dtype))

    return np.asarray(jax.jit(matrix)(params, batch))
