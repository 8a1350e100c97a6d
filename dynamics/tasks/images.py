"""Real images as tasks: scikit-learn's digits at once; MNIST, Fashion-MNIST and CIFAR-10 from checked files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, Real

from dynamics.extras import missing
from dynamics.tasks.files import CIFAR10, FASHION_MNIST, MNIST, Source, fetch, read_cifar10, read_idx
from dynamics.types import Batch, Data


class Images(NamedTuple):
    """Pixels and labels."""

    x: Real[np.ndarray, "n height width channels"]
    labels: Integer[np.ndarray, " n"]


def digits(
    train: int | None = None,
    test: int | None = None,
    *,
    seed: int | Sequence[int] | None = None,
    scale: str = "unit",
    target: str | Callable[[np.ndarray], np.ndarray] = "one_hot",
    classes: int | Sequence[int] | None = None,
    epsilon: float = 1e-2,
    flat: bool = True,
    dtype: Any = np.float32,
) -> Data:
    """The 1797 handwritten digits (8 x 8 grey pixels, 10 classes) that ship with scikit-learn; nothing is downloaded.

    Args:
        train: number of training samples; None for all (none is then left for the test).
        test: number of test samples, taken after the training ones; None for all the rest, 0 for none.
        seed: shuffles before splitting (one or several numbers); None keeps scikit-learn's order.
        scale: see ``task``.
        target: see ``task``.
        classes: labels to keep: the first k for an integer, or the labels listed; class j is then the j-th of these.
        epsilon: see ``task``.
        flat: ``x [n, 64]``; False gives ``[n, 8, 8, 1]``.
        dtype: of ``x`` and ``y``.

    Returns:
        ``Data(train, test)`` of numpy arrays; ``test`` is None when no sample is left for it.

    Raises:
        ImportError: without scikit-learn; the message names the extra ``data``.
        ValueError: when an argument is out of its range.

    Reference: Alpaydin & Kaynak 1998, 'Optical recognition of handwritten digits', UCI Machine Learning Repository.

    Example:
        >>> data = digits(200, seed=0)
        >>> data.train.x.shape, data.train.y.shape, data.test.x.shape
        ((200, 64), (200, 10), (1597, 64))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing("digits", "scikit-learn", "data") from error
    loaded: Any = load_digits()
    images, names = _keep(Images(loaded.images[..., None], loaded.target.astype(int)), classes, 10)
    n = len(images.labels)
    train = n if train is None else train
    test = max(n - train, 0) if test is None else test
    if not 1 <= train <= n or not 0 <= test <= n - train:
        raise ValueError(f"train, test: got {train!r}, {test!r}; allowed: train >= 1, together at most {n}")
    order = _order(n, seed)
    first = _pick(images, order[:train], 16.0)
    second = _pick(images, order[train : train + test], 16.0) if test else None
    return task(first, second, names, scale=scale, target=target, epsilon=epsilon, flat=flat, dtype=dtype)


def mnist(
    train: int | None = None,
    test: int | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    source: Source = MNIST,
    seed: int | None = None,
    scale: str = "unit",
    target: str | Callable[[np.ndarray], np.ndarray] = "one_hot",
    classes: int | Sequence[int] | None = None,
    epsilon: float = 1e-2,
    flat: bool = True,
    dtype: Any = np.float32,
) -> Data:
    """MNIST: 60000 training and 10000 test images of digits, 28 x 28 grey pixels.

    Args:
        train, test: numbers of samples, from the training and the test files; None for all, ``test=0`` for none.
        download: fetch missing files; False (the default) never touches the network.
        cache: folder that holds the data sets; None for ``$DYNAMICS_DATA`` or the user's cache directory.
        source: the files, their hashes and mirrors.
        seed: shuffles each of the two before cutting; None keeps the files' order.
        scale, target, epsilon, flat, dtype: see ``task``.
        classes: see ``digits``.

    Returns:
        ``Data(train, test)`` of numpy arrays.

    Raises:
        FileNotFoundError, ValueError, OSError, ImportError: see ``dynamics.tasks.files.fetch``.

    Reference: LeCun, Bottou, Bengio & Haffner 1998, 'Gradient-based learning applied to document recognition'.
    """
    home = fetch(source, download=download, cache=cache)

    def read(part: str) -> Images:
        pixels = read_idx(home / f"{part}-images-idx3-ubyte.gz")
        return Images(pixels[..., None], read_idx(home / f"{part}-labels-idx1-ubyte.gz").astype(int))

    first, second, names = _cut(read("train"), read("t10k"), train, test, classes, seed)
    return task(first, second, names, scale=scale, target=target, epsilon=epsilon, flat=flat, dtype=dtype)


def fashion_mnist(train: int | None = None, test: int | None = None, **options: Any) -> Data:
    """Fashion-MNIST: 60000 training and 10000 test images of clothes in 10 classes, 28 x 28 grey pixels.

    Takes what ``mnist`` takes.

    Reference: Xiao, Rasul & Vollgraf 2017, 'Fashion-MNIST: a novel image dataset'.
    """
    return mnist(train, test, **{"source": FASHION_MNIST, **options})


def cifar10(
    train: int | None = None,
    test: int | None = None,
    *,
    download: bool = False,
    cache: str | Path | None = None,
    source: Source = CIFAR10,
    seed: int | None = None,
    scale: str = "unit",
    target: str | Callable[[np.ndarray], np.ndarray] = "one_hot",
    classes: int | Sequence[int] | None = None,
    epsilon: float = 1e-2,
    flat: bool = True,
    dtype: Any = np.float32,
) -> Data:
    """CIFAR-10: 50000 training and 10000 test colour images, 32 x 32 x 3 pixels, 10 classes.

    Takes what ``mnist`` takes. The binary archive is read, never the pickled one.

    Reference: Krizhevsky 2009, 'Learning multiple layers of features from tiny images'.
    """
    home = fetch(source, download=download, cache=cache)
    archive = home / next(iter(source.files))
    training, held_out = Images(*read_cifar10(archive, train=True)), Images(*read_cifar10(archive, train=False))
    first, second, names = _cut(training, held_out, train, test, classes, seed)
    return task(first, second, names, scale=scale, target=target, epsilon=epsilon, flat=flat, dtype=dtype)


def task(
    train: Images,
    test: Images | None,
    classes: Sequence[int],
    *,
    scale: str = "unit",
    target: str | Callable[[np.ndarray], np.ndarray] = "one_hot",
    epsilon: float = 1e-2,
    flat: bool = True,
    dtype: Any = np.float32,
) -> Data:
    """Turns labelled images into inputs and targets; every statistic is taken from the training samples alone.

    Args:
        train, test: images with pixels in [0, 1], whose labels are indices into ``classes``.
        classes: the original label of each index.
        scale: ``unit`` leaves pixels in [0, 1]; ``standard`` is ``(x - mean) / (std + epsilon)`` for each pixel;
            ``whiten`` is ``U (S + epsilon)^(-1/2) U^T (x - mean)`` with ``U S U^T`` the pixel covariance (ZCA).
        target: ``one_hot`` gives ``[n, k]``; ``parity`` gives ``[n, 1]``, +1 for an even original label and -1 for an
            odd one; ``binary`` gives ``[n, 1]``, -1 for the first half of ``classes`` and +1 for the second; a function
            maps original labels ``[n]`` to targets ``[n]`` or ``[n, c]``.
        epsilon: regularisation of ``standard`` (a standard deviation) and ``whiten`` (a variance), in pixel units.
        flat: one axis of features instead of height, width, channels.
        dtype: of ``x`` and ``y``.

    Returns:
        ``Data`` of numpy arrays.

    Raises:
        ValueError: when ``scale`` or ``target`` is unknown, or ``epsilon`` is not positive and finite.

    Cost: ``whiten`` takes one eigendecomposition of the ``[d, d]`` covariance, d pixels.
    """
    if not (np.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon: got {epsilon!r}; allowed: a number > 0")
    rescale = _rescaling(train.x, scale, epsilon)
    targets = _targets(target, np.asarray(classes))

    def batch(images: Images) -> Batch:
        x = rescale(images.x)
        x = x.reshape(len(x), -1) if flat else x
        return Batch(x.astype(dtype), targets(images.labels).astype(dtype))

    return Data(batch(train), None if test is None else batch(test))


def _keep(images: Images, classes, available: int) -> tuple[Images, tuple[int, ...]]:
    """Keeps the samples of ``classes`` and replaces their labels by indices into it."""
    if classes is None:
        classes = available
    names = tuple(range(classes)) if isinstance(classes, int) else tuple(classes)
    if len(names) < 2 or len(set(names)) < len(names) or not set(names) <= set(range(available)):
        raise ValueError(
            f"classes: got {classes!r}; allowed: an integer from 2 to {available}, or distinct labels below {available}"
        )
    index = np.full(available, -1)
    index[list(names)] = np.arange(len(names))
    labels = index[images.labels]
    kept = labels >= 0
    return Images(images.x[kept], labels[kept]), names


def _cut(train: Images, test: Images, n_train, n_test, classes, seed) -> tuple[Images, Images | None, tuple[int, ...]]:
    """The samples asked for, from a data set that comes split into training and test images of 256 grey levels."""

    def cut(name, images: Images, n, low: int, stream: int) -> Images | None:
        available = len(images.labels)
        n = available if n is None else n
        if not low <= n <= available:
            raise ValueError(f"{name}: got {n!r}; allowed: an integer from {low} to {available}")
        order = _order(available, None if seed is None else [seed, stream])
        return _pick(images, order[:n], 255.0) if n else None

    (train, names), (test, _) = _keep(train, classes, 10), _keep(test, classes, 10)
    first, second = cut("train", train, n_train, 1, 0), cut("test", test, n_test, 0, 1)
    assert first is not None
    return first, second, names


def _pick(images: Images, index: np.ndarray, white: float) -> Images:
    return Images(images.x[index].astype(np.float32) / np.float32(white), images.labels[index])


def _order(n: int, seed) -> np.ndarray:
    return np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)


def _rescaling(x: np.ndarray, scale: str, epsilon: float) -> Callable[[np.ndarray], np.ndarray]:
    if scale == "unit":
        return lambda images: images
    mean = x.mean(axis=0, dtype=np.float64)
    if scale == "standard":
        std = x.std(axis=0, dtype=np.float64)
        return lambda images: (images - mean) / (std + epsilon)
    if scale == "whiten":
        centred = (x - mean).reshape(len(x), -1)
        variances, directions = np.linalg.eigh(centred.T @ centred / len(x))
        matrix = (directions / np.sqrt(np.maximum(variances, 0.0) + epsilon)) @ directions.T
        return lambda images: ((images - mean).reshape(len(images), -1) @ matrix).reshape(images.shape)
    raise ValueError(f"scale: got {scale!r}; allowed: unit, standard, whiten")


def _targets(target, classes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    if callable(target):
        return lambda labels: _columns(np.asarray(target(classes[labels])), len(labels))
    if target == "one_hot":
        return lambda labels: np.eye(len(classes))[labels]
    if target == "parity":
        return lambda labels: 1.0 - 2.0 * (classes[labels] % 2)[:, None]
    if target == "binary":
        return lambda labels: np.where(2 * labels < len(classes), -1.0, 1.0)[:, None]
    raise ValueError(f"target: got {target!r}; allowed: one_hot, parity, binary, or a function of the labels")


def _columns(y: np.ndarray, n: int) -> np.ndarray:
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != n:
        raise ValueError(f"target: got an array of shape {y.shape}; allowed: [{n}] or [{n}, c]")
    return y
