"""Wrong theories and controls by experiment: ``rivals/FAMILY/PAPER.py`` for ``experiments.FAMILY.PAPER``.

Each file holds ``CONFIG``, a dictionary of settings at which the experiment runs in CPU seconds and the claims to be
tried hold, and ``wrong(result)``, which yields ``(name, result)`` of the same experiment with the rival in the theory's
place: records exchanged or labels shuffled (``replaced``), or the experiment run again under a patch.
"""

from __future__ import annotations


def replaced(result, record: str, **values):
    """``result`` with other values in one of its records."""
    held = result.records[record]
    new = held._replace(values={**held.values, **values})
    return result._replace(records={**result.records, record: new})
