"""The field's results, one module a paper, under the name that they have wherever the package is installed.

In a checkout this stands for the folder ``experiments`` beside the package, which a wheel has in place of this file.
"""

from pathlib import Path

from dynamics.runs.durable.modules import refuse_unknown

__path__[:] = [str(Path(__file__).resolve().parents[2] / "experiments")]
refuse_unknown(__name__)
