"""Kernels of randomly initialised finite networks, averaged, with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from dynamics.arguments import check_counts
from dynamics.empirical.functions import empirical_kernel_fn, record_of
from dynamics.stax.kernel.batching import batch
from dynamics.stax.kernel.masks import unmask_fn

_ERROR = "_standard_error"


def monte_carlo_kernel_fn(
    init_fn: Callable[..., Any],
    apply_fn: Callable[..., Any],
    key,
    n_samples: int | Iterable[int],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    trace_axes: int | tuple[int, ...] = (-1,),
    diagonal_axes: int | tuple[int, ...] = (),
    vmap_axes: Any = None,
    implementation: int = 1,
    *,
    mixing: str = "refuse",
):
    """The mean empirical kernel of ``n_samples`` networks, an estimate of the infinite-width one.

    Its bias is ``O(1 / width)``; its standard error, asked for as 'nngp_standard_error' and 'ntk_standard_error', is
    ``sqrt(var / n_samples)`` over the networks.

    Args:
        init_fn, apply_fn: the network. key: random key.
        n_samples: number of networks, or several numbers: then a generator of running means.
        batch_size, device_count, store_on_device: as in ``batch``.
        trace_axes, diagonal_axes, vmap_axes, implementation, mixing: as in ``empirical_ntk_fn``.

    Returns:
        ``kernel_fn(x1, x2=None, get=None, **apply_fn_kwargs)``; ``get`` None for 'nngp' and 'ntk'. A network with
        several outputs has a kernel for each. Masked outputs (``mask_constant=``) count as zeros.

    Reference: Novak et al. 2019, section 4.

    >>> import jax
    >>> from dynamics import stax
    >>> init_fn, apply_fn, _ = stax.serial(stax.Dense(64), stax.Relu(), stax.Dense(1))
    >>> kernel_fn = monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(0), n_samples=8)
    >>> kernel_fn(jax.numpy.eye(3), None, ('ntk', 'ntk_standard_error')).ntk.shape
    (3, 3)
    """
    counts = {n_samples} if isinstance(n_samples, int) else set(n_samples)
    if not counts or any(not isinstance(n, int) or n < 1 for n in counts):
        raise ValueError(f"n_samples: got {n_samples}; allowed: integers >= 1")
    empirical = empirical_kernel_fn(
        unmask_fn(apply_fn), trace_axes, diagonal_axes, vmap_axes, implementation, mixing=mixing
    )

    def one(x1, x2, key, get, **apply_fn_kwargs):
        init_key, apply_key = jax.random.split(key)
        _, params = init_fn(init_key, jax.tree.map(jnp.shape, x1))
        options = {"rng": apply_key, **apply_fn_kwargs}
        return {kind: empirical(x1, x2, kind, params, **options) for kind in get}

    sample = batch(one, batch_size, device_count, store_on_device)

    def running(x1, x2, names, apply_fn_kwargs):
        kinds = _kinds(names)
        current, mean, spread = key, None, None
        for n in range(1, max(counts) + 1):
            current, split = jax.random.split(current)
            new = sample(x1, x2, split, kinds, **apply_fn_kwargs)
            mean, spread = _welford(new, mean, spread, n)
            if n in counts:
                yield _read(names, mean, spread, n)

    def kernel_fn(x1, x2=None, get=None, **apply_fn_kwargs):
        names = _lower(("nngp", "ntk") if get is None else get)
        _kinds(names)
        results = (r if not isinstance(get, str) else _only(r) for r in running(x1, x2, names, apply_fn_kwargs))
        return next(iter([*results])) if isinstance(n_samples, int) else results

    return kernel_fn


def estimated_kernel_fn(model_from_key: Callable[..., Any], key, n_estimates: int):
    """The mean kernel of networks whose ``kernel_fn`` is itself an estimate, with standard errors.

    For layers such as ``GlobalSelfAttention(linear_scaling=False, n_samples=..., key=...)``. Repeating the estimate
    with independent keys gives the error after any further layers; nonlinear ones turn the noise of one estimate into
    a bias of order ``1 / n_samples``, which does not fall with ``n_estimates``.

    Args:
        model_from_key: ``key -> Model`` (or triple). key: random key. n_estimates: number of keys, at least 2.

    Returns:
        ``kernel_fn(x1, x2=None, get=None)``: a namedtuple of 'nngp', 'ntk' and their '_standard_error's, or those in
        ``get``. Cost: ``n_estimates`` kernels.

    Raises:
        ValueError: for ``n_estimates`` that is not an integer above 1, unknown names in ``get``.
    """
    check_counts(2, n_estimates=n_estimates)

    def kernel_fn(x1, x2=None, get=None):
        names = ("nngp", "ntk", "nngp" + _ERROR, "ntk" + _ERROR) if get is None else get
        names = _lower(names)
        kinds = _kinds(names)

        def one(state, each):
            n, each_key = each
            found = model_from_key(each_key)[2](x1, x2, kinds)
            new = {kind: getattr(found, kind) for kind in kinds}
            return _update(new, state[0], state[1], n), None

        shapes = jax.eval_shape(lambda k: model_from_key(k)[2](x1, x2, kinds)._asdict(), key)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), dict(shapes))
        order = jnp.arange(1, n_estimates + 1), jax.random.split(key, n_estimates)
        (mean, spread), _ = jax.lax.scan(one, (zero, zero), order)
        result = _read(names, mean, spread, n_estimates)
        return _only(result) if isinstance(get, str) else result

    return kernel_fn


def _lower(get) -> tuple[str, ...]:
    names = (get,) if isinstance(get, str) else tuple(get)
    return tuple(name.lower() if isinstance(name, str) else name for name in names)


def _only(tree):
    """The single field of every record in ``tree``."""
    return jax.tree.map(lambda r: r[0], tree, is_leaf=_is_record)


def _is_record(x) -> bool:
    return type(x).__name__ == "MonteCarloKernel"


def _kinds(names) -> tuple[str, ...]:
    """'nngp' and 'ntk' as far as ``names`` ask for them or their errors."""
    for name in names:
        if not isinstance(name, str) or name.removesuffix(_ERROR) not in ("nngp", "ntk"):
            raise ValueError(f"get: got {name!r}; allowed: 'nngp', 'ntk' and their '{_ERROR}'")
    return tuple(dict.fromkeys(name.removesuffix(_ERROR) for name in names))


def _welford(new, mean, spread, n):
    """Running mean and sum of squared deviations, stable in float32."""
    if mean is None:
        return new, jax.tree.map(jnp.zeros_like, new)
    return _update(new, mean, spread, n)


def _update(new, mean, spread, n):
    delta = jax.tree.map(jnp.subtract, new, mean)
    mean = jax.tree.map(lambda m, d: m + d / n, mean, delta)
    spread = jax.tree.map(lambda s, d, x, m: s + d * (x - m), spread, delta, new, mean)
    return mean, spread


def _read(names, mean, spread, n):
    found = {}
    for name in names:
        kind = name.removesuffix(_ERROR)
        if name == kind:
            found[name] = mean[kind]
        elif n == 1:
            found[name] = jax.tree.map(lambda s: jnp.full_like(s, jnp.inf), spread[kind])
        else:
            found[name] = jax.tree.map(lambda s: jnp.sqrt(s / (n - 1) / n), spread[kind])
    return jax.tree.map(record_of("MonteCarloKernel", tuple(names)), *found.values())
