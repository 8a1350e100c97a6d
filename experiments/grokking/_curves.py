"""Curves of the lazy-to-rich network over its theory, for figures."""

from __future__ import annotations

import numpy as np

from dynamics.runs.figures import measured_style, theory_style
from dynamics.types import Record


def overlay(panel, records, name: str, cells, first: int = 0) -> None:
    """Median over seeds of the network on the theory, for each cell ``(records' suffix, index, label)``."""
    for place, (suffix, i, label) in enumerate(cells, start=first):
        network, infinite = records["network" + suffix], records["infinite width" + suffix]
        read = np.flatnonzero(np.isfinite(middle(network, name, i)))
        shown = read[:: max(1, read.size // 25)]
        panel.plot(visible(infinite.step)[read], middle(infinite, name, i)[read], **theory_style(place))
        style = measured_style(place, max(3, len(cells)))
        panel.plot(visible(network.step)[shown], middle(network, name, i)[shown], label=label, **style)


def middle(record: Record, name: str, cell: int) -> np.ndarray:
    return np.median(np.asarray(record.values[name])[:, cell], axis=-1)


def visible(step) -> np.ndarray:
    """Step 0 drawn at 0.7 on a logarithmic axis."""
    return np.maximum(np.asarray(step, float), 0.7)
