"""Layers one after the other on a Kernel: copies of a block are the steps of a loop.

XLA fuses a chain of layers into one program whose compilation grows faster than its length: the gradient of ten Dense
and Relu took 24 CPU seconds, a hundred of them without a gradient more than two minutes. A loop's body is compiled
once (4 s for the gradient of any depth). A chain of ReLU, whose layers XLA would fuse, runs up to 1.3 times as long,
and where an activation costs more nothing is lost; so short networks are written out.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

FEWEST = 8
"""Copies of a block that become a loop; fewer are written out."""
_LONGEST_BLOCK = 32
_VALUES = (bool, int, float, complex, str, bytes, type(None), np.dtype)


def in_turn(layers: Sequence[Callable[..., Any]], names: Sequence[int], kernel: Any, **kwargs: Any) -> Any:
    """``layers[-1](... layers[0](kernel))``, a loop over copies of a block that keeps its Kernel's form.

    Args:
        layers: maps from Kernel to Kernel.
        names: which of them are the same map, by ``named``.
        kernel: a pytree of Kernels; ``kwargs`` go to every layer.
    """
    at = 0
    while at < len(layers):
        period, copies = repetition(names, at)
        block = functools.partial(_through, layers[at : at + period], kwargs)
        kernel, at, copies = block(kernel), at + period, copies - 1  # the first may change flags and shapes
        if copies >= FEWEST - 1 and _form(kernel) == _form(jax.eval_shape(block, kernel)):
            kernel, at = again(block, kernel, copies), at + period * copies
    return kernel


def _through(layers: Sequence[Callable[..., Any]], kwargs: dict[str, Any], kernel: Any) -> Any:
    return functools.reduce(lambda k, layer: layer(k, **kwargs), layers, kernel)


def again(block: Callable[[Any], Any], kernel: Any, copies: int) -> Any:
    """``block`` so many times, a loop: it must keep the Kernel's form."""
    return jax.lax.scan(lambda k, _: (block(k), None), kernel, None, copies)[0]


def _form(kernel: Any) -> Any:
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda k: k, kernel))
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def repetition(names: Sequence[int], at: int) -> tuple[int, int]:
    """``(period, copies)`` of the block that starts ``at`` and covers most, with ``FEWEST`` copies; else (1, 1)."""
    best = (1, 1)
    for period in range(1, min(_LONGEST_BLOCK, (len(names) - at) // FEWEST) + 1):
        end = at + period
        while end < len(names) and names[end] == names[end - period]:
            end += 1
        copies = (end - at) // period
        if copies >= FEWEST and period * copies > best[0] * best[1]:
            best = period, copies
    return best


def named(layers: Sequence[Any]) -> list[int]:
    """A number for each layer, the same for those that are ``same``."""
    kinds: list[Any] = []
    names = []
    for layer in layers:
        name = next((i for i, kind in enumerate(kinds) if same(kind, layer)), len(kinds))
        kinds += [layer] if name == len(kinds) else []
        names.append(name)
    return names


def same(a: Any, b: Any, open: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Whether two objects do the same: one object, or functions of one text that hold the same values.

    Arrays, and objects of any other kind, are the same only as themselves; so what is not found to be the same may be.
    """
    if a is b or (id(a), id(b)) in open:
        return True
    if type(a) is not type(b):
        return False
    parts = _parts(a), _parts(b)
    if isinstance(a, _VALUES):
        return repr(a) == repr(b)
    if None in parts or len(parts[0]) != len(parts[1]):
        return False
    inside = open | {(id(a), id(b))}
    return all(same(one, other, inside) for one, other in zip(*parts, strict=True))


def _parts(x: Any) -> Any:
    """All that decides what ``x`` does; None where that is not known."""
    if isinstance(x, types.FunctionType):
        cells = [_content(cell) for cell in x.__closure__ or ()]
        return [x.__code__, id(x.__globals__), x.__defaults__, x.__kwdefaults__, *cells]
    if isinstance(x, types.MethodType):
        return [x.__func__, x.__self__]
    if isinstance(x, functools.partial):
        return [x.func, x.args, x.keywords]
    if isinstance(x, tuple | list):
        return x
    if isinstance(x, dict):
        return [*x, *x.values()]
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return [getattr(x, field.name) for field in dataclasses.fields(x)]
    return None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return cell
