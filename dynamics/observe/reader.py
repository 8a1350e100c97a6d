"""One observable in a loop that is not ours: its programs, its memory, its readings and what they cost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.compiled import keep_compiled
from dynamics.observe.compose import check_readings
from dynamics.observe.loop_state import LoopState, signature
from dynamics.program.on_cpus import quick_loops
from dynamics.types import Observable, PyTree, Record, View

_COMPILE = 20.0  # a program's compilation takes about this many times its lowering
_WARM_UP = 0.25  # seconds of a first call below which it is called once more to learn its cost
TOLD = 1.0  # seconds that something may take without a word


class Cost(NamedTuple):
    """What an observable has cost a watch.

    Attributes:
        readings: how many.
        seconds: of wall time for all of them, compilation apart.
        last: seconds of the last one.
        compilation: seconds that were needed once: tracing, compilation, the first call of a cheap program.
    """

    readings: int = 0
    seconds: float = 0.0
    last: float = 0.0
    compilation: float = 0.0


class Reader:
    """One observable in a loop: its memory, its programs, its readings and what they cost."""

    def __init__(self, observable: Any, view: Callable[..., View], say: Callable[[str], None]) -> None:
        pair = Observable.of(observable)
        self.names: list[str] = []
        self.steps: list[int] = []
        self.readings: list[dict[str, np.ndarray]] = []
        self.cost, self.at = Cost(), 0.0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._say, self._memory, self._programs = say, None, {}

        def update(memory: PyTree, *at: Any) -> Any:
            memory, readings = pair.update(memory, view(*at))
            check_readings(readings)
            shapes = {name: jnp.shape(value) for name, value in readings.items()}
            if not shapes:
                raise TypeError("observable: got no reading from it; allowed: one at least")
            if self.readings and shapes != self._shapes:
                raise ValueError(
                    f"observable: got readings of shapes {shapes}; allowed: those of its first ones, {self._shapes}; "
                    "where the parameters change their shapes, a new watch"
                )
            self.names, self._shapes = list(shapes), shapes
            return memory, readings

        self._init, self._update = jax.jit(lambda *at: pair.init(view(*at))), jax.jit(quick_loops(update))

    @property
    def name(self) -> str:
        return self.names[0] if self.names else "the next observable"

    def read(self, step: int, state: LoopState, batch: Any) -> dict[str, np.ndarray]:
        """Reads at ``step``; what is not compiled yet is compiled, aloud where that takes long."""
        at = (state, batch, jnp.int32(step), jnp.int32(self.cost.readings))
        began, compiling = time.perf_counter(), self.cost.compilation
        if self._memory is None:
            self._memory = self._compiled(self._init, at)(*at)
        program = self._compiled(self._update, (self._memory, *at))
        calling = time.perf_counter()
        after, readings = jax.block_until_ready(program(self._memory, *at))
        first = time.perf_counter() - calling
        if not self.steps and first < _WARM_UP:  # it holds what is done once; the second call tells the cost
            after, readings = jax.block_until_ready(program(self._memory, *at))
            self.cost = self.cost._replace(compilation=self.cost.compilation + first)
        self._memory, readings = after, {name: np.asarray(readings[name]) for name in self.names}
        self.at = time.perf_counter()
        last = self.at - began - (self.cost.compilation - compiling)
        self.steps.append(step)
        self.readings.append(readings)
        cost = self.cost
        self.cost = cost._replace(readings=cost.readings + 1, seconds=cost.seconds + last, last=last)
        return readings

    def _compiled(self, function: Any, at: tuple) -> Any:
        key = function, signature(at)
        if key not in self._programs:
            keep_compiled()
            began = time.perf_counter()
            with self._patience():
                traced = function.trace(*at)
            lowering = time.perf_counter()
            lowered = traced.lower()
            expected = _COMPILE * (time.perf_counter() - lowering)
            if function is self._update and expected > TOLD:
                self._say(f"compiling {self.name}: once, about {expected:.0f} s")
            self._programs[key] = lowered.compile()
            spent = self.cost.compilation + time.perf_counter() - began
            self.cost = self.cost._replace(compilation=spent)
        return self._programs[key]

    @contextlib.contextmanager
    def _patience(self):
        """Says that something goes on, once it has taken longer than ``TOLD``."""
        timer = threading.Timer(TOLD, self._say, [f"preparing {self.name}: its program is traced, once"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def record(self) -> Record:
        values = {name: np.stack([readings[name] for readings in self.readings]) for name in self.names}
        return Record(np.array(self.steps, np.int32), np.array(self.steps), values)
