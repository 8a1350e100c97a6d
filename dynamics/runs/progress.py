"""``simulate`` with a progress bar, for notebooks and scripts that keep no files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dynamics.evolve.checks import check_data
from dynamics.evolve.simulate import advance, check_record_at, start, times
from dynamics.runs.driver import Pace
from dynamics.types import Dynamics, PyTree, Readout, Record


def simulate_with_progress(
    dynamics: Dynamics,
    readout: Callable[..., Any] | Readout,
    state: PyTree,
    data: Any,
    steps: int,
    key: Any,
    record_at: Any,
    stop: Callable[..., Any] | None = None,
    *,
    label: str | None = None,
) -> tuple[PyTree, Record]:
    """``evolve.simulate`` in pieces of about half a second, with a bar: steps a second, time left.

    The result is that of ``evolve.simulate`` to the bit. An experiment takes it in place of the plain loop:
    ``run(config, simulate_with_progress)``.

    Args:
        label: written before the bar; the rest as in ``evolve.simulate``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics.evolve import gradient_descent
        >>> from dynamics.losses import mse
        >>> from dynamics.types import Batch
        >>> training = gradient_descent(lambda w, x: x @ w, mse, 0.1)
        >>> batch = Batch(jnp.eye(2), jnp.ones((2, 1)))
        >>> read = lambda state, data: {"loss": state.loss}
        >>> start = training.init(jnp.zeros((2, 1)))
        >>> state, record = simulate_with_progress(training, read, start, batch, 9, jax.random.key(0), [0, 9])
        >>> int(state.step)
        9
    """
    from tqdm.auto import tqdm

    check_data(data)
    targets = check_record_at(record_at, steps)
    ends = targets if targets.size and targets[-1] == steps else np.append(targets, np.int32(steps))
    carry, count, now = start(readout, state, data, stop), len(targets), 0
    pace, pieces = Pace(), []
    with tqdm(total=steps, unit="step", desc=label) as bar:
        while count or now < steps:
            piece = pace.piece(now, ends, count)
            began = bar.format_dict["elapsed"]
            carry, values = jax.block_until_ready(
                advance(dynamics, readout, stop, carry, data, key, piece.targets, piece.read)
            )
            pace.learn(bar.format_dict["elapsed"] - began)
            pieces.append({name: np.asarray(value)[piece.read] for name, value in values.items()})
            passed, reached = int(piece.read.sum()), int(piece.targets[-1])
            bar.update(reached - now)
            ends, count, now = ends[passed:], count - passed, reached
    names = pieces[0] if pieces else ()
    values = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
    return carry.state, Record(targets, times(dynamics.dt, targets), values)
