"""The picture of a coordinate check."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynamics.runs.figures import colour, measured_style, new_figure, text, theory_style, ticks_at
from dynamics.tools.coordinates import CoordinateCheck


def coordinate_figure(check: CoordinateCheck) -> Any:
    """Root mean squares of activations at the start and of their first changes against width, and their exponents
    beside those predicted and those of each parametrisation.

    Args:
        check: what ``coordinate_check`` found.

    Returns:
        A matplotlib figure of three panels.
    """
    count, widths = len(check.layers), np.asarray(check.widths)
    figure, axes = new_figure(1, 3, width=4.4, height=0.9 + max(2.6, 0.24 * count))
    for ax, name in zip(axes, ("activation", "change")):
        for i, layer in enumerate(check.layers):
            sizes = check.sizes[name][0, i]  # [seeds, widths]
            if not np.all(sizes > 0):
                continue
            mean = np.exp(np.log(sizes).mean(0))
            spread = np.exp(np.log(sizes).std(0))
            ax.errorbar(widths, mean, [mean - mean / spread, mean * spread - mean], ms=5, label=text(layer),
                        **measured_style(i, count))  # fmt: skip
            slope = getattr(check.predicted[i], name)
            if np.isfinite(slope):
                shape = (widths / widths[-1]) ** slope  # changes approach their power, activations scatter about it
                height = mean[-1] if name == "change" else np.exp(np.log(mean / shape).mean())
                ax.plot(widths, height * shape, lw=0.8, **theory_style())
        ax.set(xscale="log", yscale="log", xlabel="width")
        ax.set_title("activation at the start" if name == "activation" else "its change by the first step", fontsize=9)
        ticks_at(ax.xaxis, widths)
    if count <= 10:
        axes[1].legend(fontsize=6, loc="best", ncols=2)
    axes[0].set_ylabel("root mean square; lines: predicted slope")
    places = np.arange(count)[::-1]
    for i, (name, table) in enumerate(check.schemes.items()):
        shade = colour(i, len(check.schemes) + 1)
        agrees = name == check.verdict
        style = {"ms": 17 if agrees else 11, "mew": 3.0 if agrees else 1.3, "color": shade, "alpha": 0.9}
        axes[2].plot([one.change for one in table], places, "|", label=name, **style)
    values = [law.exponent for law in check.change]
    half = [0.5 * (law.high - law.low) for law in check.change]
    axes[2].errorbar(values, places, xerr=half, fmt="o", color="black", mfc="none", ms=6, capsize=2, label="measured")
    axes[2].plot(
        [one.change for one in check.predicted], places, "x", color="black", ms=6, label="predicted from sizes"
    )
    axes[2].set_yticks(places, labels=[text(layer) for layer in check.layers])
    axes[2].set(xlabel="exponent of the change")
    axes[2].set_title(f"verdict: {check.verdict}", fontsize=9)
    axes[2].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=0.6)
    return figure
