"""``simulate`` with a progress bar, for notebooks and scripts that keep no files."""

from __future__ import annotations

import functools
from typing import Any

from dynamics.evolve.simulate import prepare, simulate, times
from dynamics.evolve.study import planned, study
from dynamics.runs.durable.bar import step_bar
from dynamics.runs.durable.driver import paced
from dynamics.runs.durable.pacing import Pace
from dynamics.runs.durable.resume import joined
from dynamics.types import Dynamics, PyTree, Record


@functools.wraps(simulate)
def simulate_with_progress(
    dynamics: Dynamics, params: PyTree, data: Any, *old: Any, train=(), test=(), steps=None, record_at=None, key=None,
    stop=None, state=None, label: str | None = None,
) -> tuple[PyTree, Record]:  # fmt: skip
    """``evolve.simulate`` in pieces of about half a second, with a bar: steps a second, time left.

    The result is that of ``evolve.simulate`` to the bit, its arguments the same; ``label`` is written before the bar.
    An experiment takes it in place of the plain loop, or ``study_with_progress`` in place of the plain study.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics.evolve import gradient_descent
        >>> from dynamics.losses import mse
        >>> from dynamics.observe import loss
        >>> from dynamics.types import Batch, Objective
        >>> training = gradient_descent(Objective(lambda w, x: x @ w, mse), 0.1)
        >>> batch = Batch(jnp.eye(2), jnp.ones((2, 1)))
        >>> state, record = simulate_with_progress(training, jnp.zeros((2, 1)), batch, train=loss(), steps=9)
        >>> int(state.step)
        9
    """
    call = prepare(dynamics, params, data, old, train, test, steps, record_at, key, stop, state)
    pieces, carry = [], call.start()
    with step_bar(label, call.steps) as tell:
        for moved, rows, reached, _ in paced(call, carry, call.targets, Pace()):
            carry = moved
            pieces.append(rows)
            tell(reached)
    values = {name: value for name, value in joined(pieces).items() if name != "step"}
    return carry.state, Record(call.targets, times(dynamics.dt, call.targets), values)


@functools.wraps(study)
def study_with_progress(*arguments: Any, **options: Any) -> Record:
    """``evolve.study`` with a bar a piece; see ``simulate_with_progress``."""
    plan = planned(*arguments, **options)
    return plan.merge([piece.run(simulate_with_progress) for piece in plan.pieces()])
