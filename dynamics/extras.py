"""Optional packages: how the extra that holds one is installed, in one place for every message."""

from __future__ import annotations

from pathlib import Path

DISTRIBUTION = "training-dynamics"
"""The name under which the package is installed; it is imported as ``dynamics``."""


class MissingExtra(ImportError):
    """An optional package is not there; the message says which extra brings it."""


def missing(what: str, package: str, extra: str) -> MissingExtra:
    """The error to raise where ``what`` finds no ``package``: it names the command that installs the extra.

    Example:
        >>> str(missing("digits", "scikit-learn", "data")).split(":")[0]
        'digits needs scikit-learn'
    """
    return MissingExtra(f"{what} needs {package}: {installation(extra)}")


def installation(extra: str, package: Path = Path(__file__).parent) -> str:
    """The command that installs an extra: ``-e '.[EXTRA]'`` where the package is that of a checkout.

    Example:
        >>> installation("slurm", Path("site-packages/dynamics"))
        "pip install 'training-dynamics[slurm]'"
    """
    project = package.parent / "pyproject.toml"
    checkout = project.is_file() and f'name = "{DISTRIBUTION}"' in project.read_text(encoding="utf-8")
    return f"pip install -e '.[{extra}]'" if checkout else f"pip install '{DISTRIBUTION}[{extra}]'"
