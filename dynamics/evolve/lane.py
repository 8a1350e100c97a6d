"""Lanes: runs of one shape side by side in one vmapped program, each with its own settings, random stream and fate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.evolve.simulate import observables
from dynamics.evolve.views import composed
from dynamics.types import Array, Dynamics, Observable, PyTree, View


class LaneState(NamedTuple):
    """State of lanes; every leaf leads with the lane axis.

    Attributes:
        lane: int32 ``[lanes]``: seeds the lane's random stream, so a lane's result is independent of its neighbours.
        hyper: the lane's settings, a pytree of ``[lanes, ...]``: in the state, not in a closure, so that lanes of one
            shape share one compiled program, and a checkpoint holds them.
        state: the inner dynamics' states.
    """

    lane: Array
    hyper: PyTree
    state: PyTree


class Lane(Mapping):
    """The settings of one lane, as attributes: ``lane.alpha``, ``lane.seed``.

    Args:
        values: by name; traced within the program.
        seen: the names that were read are added to it.
    """

    def __init__(self, values: Mapping[str, Any], seen: set[str] | None = None) -> None:
        self.__dict__.update(_values=dict(values), _seen=seen)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            if name.startswith("__"):
                raise AttributeError(name) from None
            raise AttributeError(error.args[0]) from None

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(f"lane: got {name!r}; allowed: {', '.join(self._values)}")
        if self._seen is not None:
            self._seen.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Lanes(NamedTuple):
    """One program over lanes, as functions of a lane's settings.

    Attributes:
        make: ``lane -> Dynamics``.
        read, test: ``lane -> observables`` on the training and the test batch.
        stop: ``lane -> ((state, data) -> bool)``, or None.
        fixed: settings that all lanes share, as Python values.
        data_axis: None when the lanes share the data, 0 when every leaf of it leads with the lane axis.
    """

    make: Callable[[Lane], Dynamics]
    read: Callable[[Lane], Any]
    test: Callable[[Lane], Any]
    stop: Callable[[Lane], Callable[..., Array]] | None
    fixed: Mapping[str, Any]
    data_axis: int | None

    def lane(self, hyper: Mapping[str, Any]) -> Lane:
        return Lane({**self.fixed, **hyper})

    def made(self, hyper: Mapping[str, Any]) -> Dynamics:
        """The dynamics of one lane.

        Raises:
            TypeError: where ``make`` gives none.
        """
        found = self.make(self.lane(hyper))
        if not isinstance(found, Dynamics):
            raise TypeError(f"make: got {type(found).__name__} from it; allowed: a Dynamics")
        return found

    def init(self, hyper: PyTree, params: PyTree, streams: Array) -> LaneState:
        """The state of lanes with settings, starts and stream numbers ``[lanes, ...]``."""
        return LaneState(streams, hyper, jax.vmap(lambda h, p: self.made(h).init(p))(hyper, params))

    def dynamics(self) -> Dynamics:
        """All lanes as one ``Dynamics`` on ``LaneState``; its time is in steps."""

        def step(key, state: LaneState, data):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, state.lane)
            move = jax.vmap(lambda k, h, s, d: self.made(h).step(k, s, d), (0, 0, 0, self.data_axis))
            return state._replace(state=move(keys, state.hyper, state.state, data))

        def params(state: LaneState):
            return jax.vmap(lambda h, s: self.made(h).params(s))(state.hyper, state.state)

        return Dynamics(lambda state: state, step, params)

    def observable(self, axes: Collection[str] = ()) -> Observable:
        """What every lane reads, as one observable of ``LaneState``: ``[lanes, ...]``, none named as in ``axes``."""

        def of(hyper) -> Observable:
            lane = self.lane(hyper)
            return composed(self.made(hyper), observables(self.read(lane)), observables(self.test(lane)))

        def seen(view: View, number, state, data) -> View:
            key = jax.random.fold_in(view.key, number)
            return View(None, None, state=state, step=view.step, key=key, data=data, reading=view.reading)

        def init(view: View):
            def each(number, hyper, state, data):
                return of(hyper).init(seen(view, number, state, data))

            number, hyper, state = view.state
            return jax.vmap(each, (0, 0, 0, self.data_axis))(number, hyper, state, view.data)

        def update(memory, view: View):
            def each(memory, number, hyper, state, data):
                memory, readings = of(hyper).update(memory, seen(view, number, state, data))
                if taken := sorted(readings.keys() & set(axes)):
                    raise ValueError(f"reading: got the name {taken[0]!r}, that of an axis; allowed: any other")
                return memory, readings

            now, hyper, state = view.state
            return jax.vmap(each, (0, 0, 0, 0, self.data_axis))(memory, now, hyper, state, view.data)

        return Observable(init, update)

    def stopping(self) -> Callable[..., Array] | None:
        """``(state, data) -> bool [lanes]``."""
        if self.stop is None:
            return None

        def holds(state: LaneState, data):
            def each(hyper, state, data):
                return self.stop(self.lane(hyper))(state, data)  # type: ignore[misc]

            return jax.vmap(each, (0, 0, self.data_axis))(state.hyper, state.state, data)

        return holds

    def time_steps(self, state: LaneState) -> Array:
        """Time per step of each lane, ``[lanes]``; 1 for a schedule."""

        def each(number, hyper):
            dt = self.made(hyper).dt
            return jnp.asarray(1.0 if callable(dt) else dt, float)

        return jax.vmap(each)(state.lane, state.hyper)
