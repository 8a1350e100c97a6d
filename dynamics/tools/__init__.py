"""Tools for a user's own model, from Python and as commands: ``dynamics tools``."""

from dynamics.tools.coordinates import CoordinateCheck, coordinate_check
from dynamics.tools.figure import coordinate_figure

__all__ = ["CoordinateCheck", "coordinate_check", "coordinate_figure"]
