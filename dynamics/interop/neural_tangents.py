"""A bridge to the archived neural-tangents 0.6.5, to compare its kernels with ours (extra ``neural-tangents``).

The package no longer imports on current JAX: names it takes from ``jax.core`` and ``jax.util`` have moved, and it
loads tensorflow for a feature that is not needed here. ``load`` lends it the moved names for the time of its import.
Its empirical structured derivatives stay broken; use ``dynamics.empirical`` for those.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad
import jax.numpy as jnp

from dynamics.stax.kernel import Kernel
from dynamics.stax.layers import KernelFn, Needs
from dynamics.types import Model

_NAME = "neural_tangents"


class _Lender(types.ModuleType):
    """A module that answers with its own names first and with another module's after that."""

    def __init__(self, source: types.ModuleType, **names: Any):
        super().__init__(source.__name__)
        self.__dict__.update(names, _source=source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_source"], name)


def load() -> types.ModuleType:
    """Imports neural-tangents and returns it; afterwards ``import neural_tangents`` works too.

    Raises:
        ImportError: when it is not installed; the message says how to install it.
    """
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    try:
        with _moved_names():
            return importlib.import_module(_NAME)
    except ImportError as error:
        for name in [name for name in sys.modules if name.split(".")[0] == _NAME]:
            del sys.modules[name]
        raise ImportError(
            "neural-tangents 0.6.5 cannot be imported: pip install --no-deps neural-tangents==0.6.5 && "
            f"pip install frozendict ({error})"
        ) from error


@contextlib.contextmanager
def _moved_names() -> Iterator[None]:
    """Lends ``jax.core``, ``jax.util`` and ``jax.interpreters.ad`` their former names until the import is done."""
    moved = {name: getattr(jax.extend.core, name) for name in ("Var", "Primitive", "Literal", "Jaxpr", "JaxprEqn")}
    core = _Lender(jax.core, **moved, get_aval=jax.typeof)
    differentiation = _Lender(jax.interpreters.ad, zeros_like_p=jax.extend.core.Primitive("zeros_like"))
    with (
        _lent("jax.core", core, jax),
        _lent("jax.util", _Lender(jax, safe_map=_strict_map, safe_zip=_strict_zip)),
        _lent("jax.interpreters.ad", differentiation, jax.interpreters),
    ):
        sys.modules[f"{_NAME}.experimental"] = types.ModuleType(f"{_NAME}.experimental")
        yield


@contextlib.contextmanager
def _lent(name: str, lender: types.ModuleType, parent: types.ModuleType | None = None) -> Iterator[None]:
    before, attribute = sys.modules.get(name), name.rpartition(".")[2]
    sys.modules[name] = lender
    if parent is not None:
        setattr(parent, attribute, lender)
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        if parent is not None:
            setattr(parent, attribute, before)


def _strict_map(f, *sequences):
    return list(map(f, *(list(s) for s in sequences)))


def _strict_zip(*sequences):
    return list(zip(*sequences, strict=True))


def model_from_neural_tangents(layer) -> Model:
    """A neural-tangents layer ``(init_fn, apply_fn, kernel_fn)`` as a Model for ``stax.serial`` and ``batch``.

    Its ``kernel_fn`` keeps the signature ``(x1, x2, get)``; inside a ``serial`` with our layers Kernels are converted
    both ways, in the precision of covariances (the gap is recomputed).
    """
    init_fn, apply_fn, kernel_fn = layer
    module = load()

    def propagate(kernel, **kwargs):
        def convert(k):
            return to_neural_tangents(k, module)

        out = kernel_fn(jax.tree.map(convert, kernel, is_leaf=_is_ours), **kwargs)
        return jax.tree.map(from_neural_tangents, out, is_leaf=lambda k: isinstance(k, module.Kernel))

    return Model(init_fn, apply_fn, KernelFn(propagate, _needs(kernel_fn)))


def _is_ours(x) -> bool:
    return isinstance(x, Kernel)


def _needs(kernel_fn) -> Needs:
    required = getattr(kernel_fn, "input_req", {})
    diagonal = required.get("diagonal_spatial")
    needs_full = diagonal is None or not bool(diagonal)
    return Needs(required.get("batch_axis"), required.get("channel_axis"), lambda full: needs_full, pairs=False)


def to_neural_tangents(k: Kernel, module: types.ModuleType | None = None):
    """Our Kernel as neural-tangents' Kernel."""
    module = load() if module is None else module
    return module.Kernel(**{**k.asdict(), "x1_is_x2": jnp.asarray(k.x1_is_x2)})


def from_neural_tangents(k) -> Kernel:
    """neural-tangents' Kernel as ours."""
    k = k.reverse() if k.is_reversed else k
    attributes = {name: value for name, value in k.asdict().items() if name != "x1_is_x2"}
    ntk = None if k.ntk is None else jnp.broadcast_to(k.ntk, k.nngp.shape)
    return Kernel.from_covariances(**{**attributes, "ntk": ntk, "shape1": tuple(k.shape1), "shape2": tuple(k.shape2)})
