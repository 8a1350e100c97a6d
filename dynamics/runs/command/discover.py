"""Which experiments there are, read from their files without importing any of them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import NamedTuple

from dynamics.runs.durable.errors import BadInput
from dynamics.runs.durable.modules import EXPERIMENTS


class Entry(NamedTuple):
    """An experiment as the gallery shows it.

    Attributes:
        module: ``dynamics.experiments.family.paper``.
        title: the first line of its docstring.
        seconds: expected run time of the quick preset on two CPU cores, or None.
        flagship: whether the family's own command runs it.
        source: the paper, or an empty string.
    """

    module: str
    title: str
    seconds: float | None
    flagship: bool
    source: str = ""

    @property
    def experiment(self) -> str:
        """``family.paper``, the name of its folder of runs."""
        return f"{self.family}.{self.paper}"

    @property
    def family(self) -> str:
        """The name of the package that holds it, beside others of its kind."""
        return self.module.split(".")[-2]

    @property
    def paper(self) -> str:
        """The last part of its module's name."""
        return self.module.rsplit(".", 1)[1]


def gallery(package: str = EXPERIMENTS) -> list[Entry]:
    """Every experiment under ``package``, by family; files without a ``SOURCE`` are not experiments."""
    root = folder_of(package)
    entries = []
    for init in sorted(root.glob("*/__init__.py")):
        name = flagship(init.parent.name, package)
        for path in sorted(init.parent.glob("[!_]*.py"), key=lambda path: (path.stem != name, path.stem)):
            facts = _constants(path)
            if "SOURCE" in facts:
                module = f"{package}.{init.parent.name}.{path.stem}"
                source = facts["SOURCE"] or ""
                entries.append(Entry(module, facts["__doc__"], facts.get("SECONDS"), path.stem == name, source))
    return entries


def flagship(family: str, package: str = EXPERIMENTS) -> str | None:
    """The name of a family's flagship paper; None where there is no such family."""
    file = folder_of(package) / family / "__init__.py"
    return _constants(file).get("FLAGSHIP") if file.is_file() else None


def folder_of(package: str) -> Path:
    """The folder of a package, of which its own ``__init__.py`` alone is imported.

    Raises:
        BadInput: when there is no such package.
    """
    try:
        return Path(importlib.import_module(package).__path__[0])
    except (ModuleNotFoundError, AttributeError) as error:
        raise BadInput(f"experiment: got {package!r}; allowed: a package of experiments") from error


def _constants(path: Path) -> dict:
    tree = ast.parse(path.read_text())
    facts: dict = {"__doc__": _title(ast.get_docstring(tree) or path.stem)}
    for line in tree.body:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
            facts.update({target.id: line.value.value for target in line.targets if isinstance(target, ast.Name)})
        elif isinstance(line, ast.Assign):
            facts.update({target.id: None for target in line.targets if isinstance(target, ast.Name)})
    return facts


def _title(doc: str) -> str:
    """The first paragraph of a docstring on one line, without its full stop."""
    return " ".join(doc.split("\n\n")[0].split()).rstrip(".")
