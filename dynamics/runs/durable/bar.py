"""The progress bar of a call: steps a second and time left, of which compiling is no part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm


@contextlib.contextmanager
def step_bar(label: str | None, steps: int, done: int = 0, **options: Any) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for a call that ``driver.paced`` moves.

    The first piece compiles and is a single step: rate and time left count from its end, and its time is shown apart.

    Args:
        label: written before the bar.
        steps: of the whole call.
        done: those of an earlier process.
        options: for ``tqdm``: ``disable``, ``mininterval``.

    Yields:
        What to call with the step reached, after each piece.
    """
    began = time.perf_counter()
    with tqdm(total=steps, initial=done, desc=label, unit="step", postfix="compiling", **options) as bar:
        compiling = True

        def reached(step: int) -> None:
            nonlocal compiling
            if compiling:
                compiling = False
                bar.set_postfix_str(f"compiled in {time.perf_counter() - began:.1f} s", refresh=False)
                bar.unpause()  # the clock starts now
                bar.initial = bar.last_print_n = bar.n = step
                bar.refresh()
            else:
                bar.update(step - bar.n)

        yield reached
