"""Every split of samples, rows and lanes: in tiles, and over a mesh of devices."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dynamics.types import Array, Params, PyTree

ROWS = "rows"
"""Name of the mesh axis over which rows are split."""
LANES = "lanes"
"""Name of the mesh axis over which the lanes of a study are split."""


def device_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-axis mesh over ``devices`` (all of them unless given), axis ``rows``.

    Raises:
        ValueError: for an empty list.
    """
    chosen = jax.devices() if devices is None else list(devices)
    if not chosen:
        raise ValueError("devices: got none; allowed: at least one")
    return Mesh(np.array(chosen), (ROWS,))


def split_rows(mesh: Mesh, x: PyTree) -> PyTree:
    """``x`` with the leading axis of every leaf split over the mesh.

    Raises:
        ValueError: when a leading axis is no multiple of the number of devices.
    """
    for leaf in jax.tree.leaves(x):
        if leaf.ndim == 0 or leaf.shape[0] % mesh.size:
            raise ValueError(
                f"x: got a leaf of shape {leaf.shape}; allowed: a leading axis in multiples of {mesh.size}"
            )
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(ROWS)))


def replicate(mesh: Mesh, x: PyTree) -> PyTree:
    """``x`` on every device of the mesh."""
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))


def split_lanes(x: PyTree) -> PyTree:
    """``x`` with the leading axis of every leaf split over this process's devices; itself where that is not even.

    ``simulate`` moves such a state device by device: no lane may look at another.
    """
    devices = jax.local_devices()
    if len(devices) == 1 or any(leaf.shape[0] % len(devices) for leaf in jax.tree.leaves(x)):
        return x
    mesh = jax.make_mesh((len(devices),), (LANES,), axis_types=(AxisType.Auto,), devices=devices)
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(LANES)))


def mesh_of_lanes(x: PyTree) -> Mesh | None:
    """The mesh over which ``split_lanes`` has split ``x``; None where it has not."""
    found = {None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(x)}
    split = next(iter(found)) if len(found) == 1 else None
    mesh = split.mesh if isinstance(split, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.axis_names == (LANES,) else None


def sharded_kernel_fn(kernel_fn: Callable[..., Array], mesh: Mesh) -> Callable[..., Array]:
    """Splits the rows of a kernel over a mesh: each device computes ``kernel_fn(its rows of x1, x2, params)``.

    Args:
        kernel_fn: ``(x1, x2, params) -> [n1, n2, ...]``, e.g. ``empirical_ntk_fn(f)``; rows are independent.
        mesh: from ``device_mesh``.

    Returns:
        A function of the same signature (``x2=None`` means ``x1``), whose result is split over its rows; jitted. Row
        counts that do not divide are filled up and cut again.

    Cost: each device does ``1 / devices`` of the rows and the whole of the columns' factors; no communication. The
    symmetry of ``x2=None`` is not used.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.empirical import empirical_ntk_fn
        >>> ntk_fn = sharded_kernel_fn(empirical_ntk_fn(lambda w, x: x @ w), device_mesh())
        >>> ntk_fn(jnp.eye(3), None, jnp.ones((3, 1))).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    rows, everywhere = PartitionSpec(ROWS), PartitionSpec()

    @jax.jit
    def mapped(x1, x2, params):
        specs = (rows, everywhere, everywhere)
        return jax.shard_map(kernel_fn, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(x1, x2, params)

    def sharded(x1: PyTree, x2: PyTree | None, params: Params) -> Array:
        n = jax.tree.leaves(x1)[0].shape[0]
        columns = x1 if not jax.tree.leaves(x2) else x2
        kernel = mapped(split_rows(mesh, filled(x1, mesh.size)), replicate(mesh, columns), replicate(mesh, params))
        return kernel if n % mesh.size == 0 else kernel[:n]

    return sharded


def filled(x: PyTree, size: int) -> PyTree:
    """Samples ``[n, ...]`` filled up to a multiple of ``size`` with copies of the first one."""

    def fill(leaf: Any) -> Array:
        extra = -leaf.shape[0] % size
        return jnp.concatenate([leaf, jnp.broadcast_to(leaf[:1], (extra, *leaf.shape[1:]))]) if extra else leaf

    return jax.tree.map(fill, x)


def tiles(x: PyTree, size: int) -> PyTree:
    """Samples ``[n, ...]`` as tiles ``[ceil(n / size), size, ...]``, the last one filled up."""
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, size, *leaf.shape[1:])), filled(x, size))


class InTurn:
    """Hands calls to devices in turn, and results back to where they are kept: the first device, or host memory."""

    def __init__(self, devices, store_on_device: bool):
        self.devices, self.store_on_device, self.count = devices, store_on_device, 0

    def __call__(self, fn, x1, x2, args, kwargs):
        device = self.devices[self.count % len(self.devices)]
        self.count += 1
        if len(self.devices) > 1:
            x1, x2, args, kwargs = (_put(x, device) for x in (x1, x2, args, kwargs))
        out = fn(x1, x2, *args, **kwargs)
        if not self.store_on_device:
            return _put(out, jax.local_devices(backend="cpu")[0])
        return _put(out, self.devices[0]) if len(self.devices) > 1 else out


def _put(tree, device):
    return jax.tree.map(lambda x: jax.device_put(x, device) if isinstance(x, jax.Array) else x, tree)


def free_bytes(devices: Sequence[Any] | None = None) -> float:
    """Free memory of ``devices`` (all by default) together, bytes: an accelerator's own, the machine's for CPU.

    Page cache counts as free, since the system hands it back when asked; infinite where the platform does not say.
    """
    devices = jax.devices() if devices is None else devices
    told = [device.memory_stats() or {} for device in devices if device.platform != "cpu"]
    if told:
        return float(sum(stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0) for stats in told))
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _page_cache()
    except (ValueError, OSError, AttributeError):
        return math.inf
    return float(free * len({device.process_index for device in devices}))


def _page_cache() -> int:
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["Cached"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
