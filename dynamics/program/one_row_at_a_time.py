"""Fourier transforms of many rows one row after another, without which XLA on CPUs can wait for itself for ever.

XLA hands the rows of one transform to its pool of threads and waits for them, at times in a thread of that pool, as
jaxlib does with the matrices of one factorisation (``one_matrix_at_a_time``): as many such transforms at once as the
pool has threads leave none to do the work. A transform of one row is done by the thread that meets it.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jax.lax import FftType

from dynamics.program import jaxpr


def of_several_rows(equation: JaxprEqn) -> bool:
    """Whether it is a Fourier transform that XLA on CPUs would share among its threads."""
    return equation.primitive.name == "fft" and math.prod(jaxpr.shape(equation.invars[0])[:-1]) > 1


def rows_in_turn(equation: JaxprEqn, x: Any) -> list[Any]:
    """Its result, an axis after another and a row at a time."""
    kind, lengths = FftType(equation.params["fft_type"]), equation.params["fft_lengths"]
    inner = {FftType.RFFT: FftType.FFT, FftType.IRFFT: FftType.IFFT}.get(kind, kind)  # of the axes before the last
    passes = [(-1, kind, lengths[-1])]
    others = [(axis - len(lengths), inner, length) for axis, length in enumerate(lengths[:-1])]
    for axis, of, length in [*others, *passes] if kind is FftType.IRFFT else [*passes, *others]:
        x = jnp.moveaxis(_along_rows(jnp.moveaxis(x, axis, -1), of, length), -1, axis)
    return [x]


def _along_rows(x: Any, kind: FftType, length: int) -> Any:
    found = jax.lax.map(lambda row: jax.lax.fft(row, kind, (length,)), x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))
    return found.reshape(*x.shape[:-1], found.shape[-1])
