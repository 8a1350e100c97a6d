"""Learning coefficients (real log canonical thresholds) that are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class LearningCoefficient(NamedTuple):
    """``F_n = n L_n + value log n - (multiplicity - 1) log log n + O(1)``: value (lambda) and multiplicity (m)."""

    value: float
    multiplicity: int


def deep_linear(widths: Sequence[int], rank: int) -> LearningCoefficient:
    """lambda and m of the deep linear network ``f(x) = W_K ... W_1 x`` whose true map has rank r.

    The smallest ``l + 1`` of the ``D_i = N_i - r`` are taken, such that ``l max <= sum < l min(others)``. With
    their sum M and ``a = M - (ceil(M / l) - 1) l``,

        lambda = r (N_0 + N_K - r) / 2 + a (l - a) / 4l - (l - 1) M^2 / 4l + sum_{i<j} D_i D_j / 2,   m = a (l - a) + 1.

    Args:
        widths: ``N_0`` (inputs), ..., ``N_K`` (outputs), K >= 1.
        rank: r, in [0, min(widths)].

    Raises:
        ValueError: for other widths or ranks.

    Assumptions: the minimum over all true parameters, inputs of full rank covariance, noise of full rank covariance.

    Reference: Aoyagi 2024, 'Consideration on the learning efficiency of multiple-layered neural networks with linear
    units'; Aoyagi & Watanabe 2005 at K = 2; Lehalleur & Rimanyi 2024, 'Geometry of the fibers of the multiplication
    map', where lambda is half the codimension of the true parameters.

    Example:
        >>> deep_linear([3, 2, 2], 1)
        LearningCoefficient(value=2.5, multiplicity=1)
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths: got {list(widths)}; allowed: at least two integers >= 1")
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank: got {rank!r}; allowed: an integer in [0, {min(widths)}]")
    deficits = sorted(width - rank for width in widths)
    # The chosen are the longest head of the sorted deficits whose largest is no more than its sum over l.
    l = max(l for l in range(1, len(deficits)) if sum(deficits[: l + 1]) >= l * deficits[l])  # noqa: E741
    chosen = deficits[: l + 1]
    total = sum(chosen)
    a = total - (-(-total // l) - 1) * l
    pairs = (total**2 - sum(one**2 for one in chosen)) // 2
    regular = rank * (widths[0] + widths[-1] - rank)
    value = (2 * l * (regular + pairs) + a * (l - a) - (l - 1) * total**2) / (4 * l)
    return LearningCoefficient(value, a * (l - a) + 1)
