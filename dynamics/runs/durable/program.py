"""What a call computes, as digests: two calls of the same digests are the same program, constants included.

The program is read from its trace, equation by equation: names, source lines and addresses are no part of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.evolve.simulate import Call, Carry, advance
from dynamics.precision import full_precision
from dynamics.runs.durable.files import raw
from dynamics.runs.durable.pacing import WIDTH

NO_PART = ("name", "debug_info", "jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk")
"""Parameters of an equation that change no number."""


@full_precision
def traced(call: Call) -> tuple[dict[str, str], Carry]:
    """The digests of a call's program, and the shapes of its carry; nothing is computed.

    Returns:
        ``{"whole", "step", "readout"}``: of start, loop and readings together, of one update, and of one reading.

    Cost: one trace, which JAX keeps for the run itself on one device.
    """

    def whole(state, data, key, targets, read):
        own = call._replace(state=state, data=data, key=key, split=None)  # the same on any number of devices
        carry = own.start()
        return carry, advance(own, carry, targets, read)

    places = np.zeros(WIDTH, np.int32), np.zeros(WIDTH, bool)
    closed, shapes = jax.make_jaxpr(whole, return_shape=True)(call.state, call.data, call.key, *places)
    known: dict[int, tuple[Any, str]] = {}
    found = {"whole": _digest(closed.jaxpr, closed.consts, known)}
    for inner in _inner(closed.jaxpr):  # the first with both is the loop over segments
        kinds = {"while": "step", "cond": "readout"}
        if kinds.keys() <= {str(equation.primitive) for equation in inner.eqns}:
            for kind, name in kinds.items():
                found[name] = _shown([e.params for e in inner.eqns if str(e.primitive) == kind], known)
            break
    return found, shapes[0]


def _inner(jaxpr: Any) -> Any:
    """The programs within one, outermost first."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield inner
                yield from _inner(inner)


def _digest(jaxpr: Any, consts: Any, known: dict[int, tuple[Any, str]]) -> str:
    held, numbers = hashlib.sha256(), {}

    def say(*words: str) -> None:
        held.update(("\x1f".join(words) + "\n").encode())

    def names(variables: Any) -> str:
        return " ".join(
            f"{_shown(v.val, known)}:{v.aval}"
            if hasattr(v, "val")
            else f"{numbers.setdefault(v, len(numbers))}:{v.aval}"
            for v in variables
        )

    say(names(jaxpr.constvars), *(_shown(value, known) for value in consts))
    say(names(jaxpr.invars))
    for equation in jaxpr.eqns:
        say(str(equation.primitive), names(equation.invars), _shown(equation.params, known), names(equation.outvars))
    say(names(jaxpr.outvars))
    return held.hexdigest()


def _shown(value: Any, known: dict[int, tuple[Any, str]]) -> str:
    """A parameter or a constant as text of its own: arrays and inner programs as digests."""
    if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        if id(value) not in known:
            known[id(value)] = value, _digest(getattr(value, "jaxpr", value), getattr(value, "consts", ()), known)
        return known[id(value)][1]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(value) if is_key else value)  # pyright: ignore[reportArgumentType]
        return f"{array.dtype}{array.shape}{hashlib.sha256(raw(array)).hexdigest()}"
    if isinstance(value, Mapping):
        return str([(key, _shown(value[key], known)) for key in sorted(value, key=str) if key not in NO_PART])
    if isinstance(value, (tuple, list)):
        return str([_shown(item, known) for item in value])
    if isinstance(value, (set, frozenset)):
        return str(sorted(_shown(item, known) for item in value))
    code = getattr(getattr(value, "callback_func", value), "__code__", None)
    return _code(code) if code is not None else re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _code(code: Any) -> str:
    """The byte code of a host function, without its lines."""
    consts = [_code(const) if hasattr(const, "co_code") else repr(const) for const in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, consts)).encode()).hexdigest()
