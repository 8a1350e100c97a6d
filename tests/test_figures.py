"""Figures that the house draws by itself."""

import numpy as np

from dynamics.record import Record
from dynamics.runs import figures


def test_curves_of_a_study_are_the_median_of_its_cells():
    """The live page of a run over axes is not empty."""
    values = np.arange(15.0).reshape(3, 5)
    values[0] = np.nan
    record = Record(np.arange(3), np.arange(3), {"loss": values}, {"seed": np.arange(5)})
    (panel,) = figures.curves({"run": {"network": record}}).axes
    np.testing.assert_array_equal(panel.lines[0].get_ydata(), [np.nan, 7, 12])


def test_an_empty_logarithmic_axis_is_drawn():
    """Of a run too short to show anything; matplotlib refuses it."""
    figure, panel = figures.new_figure()
    panel.plot([0.1, 1], [np.inf, np.inf])
    panel.axhline(np.inf)
    panel.set(xscale="log", ylim=(0, None))
    assert set(figures.drawn(figure)) == {"figure.png", "figure.svg"}
