"""Which experiments there are, read from their files without importing any of them."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import NamedTuple

from dynamics.runs.durable.errors import BadInput


class Entry(NamedTuple):
    """An experiment as the gallery shows it.

    Attributes:
        module: ``experiments.family.paper``.
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
        return self.module.split(".", 1)[1]

    @property
    def family(self) -> str:
        """The package that holds it, ``experiments.family``."""
        return self.module.rsplit(".", 1)[0]

    @property
    def paper(self) -> str:
        """The last part of its module's name."""
        return self.module.rsplit(".", 1)[1]


def gallery(package: str = "experiments") -> list[Entry]:
    """Every experiment under ``package``, by family; files without a ``SOURCE`` are not experiments."""
    root = folder_of(package)
    entries = []
    for init in sorted(root.glob("*/__init__.py")):
        name = flagship(f"{package}.{init.parent.name}")
        for path in sorted(init.parent.glob("[!_]*.py"), key=lambda path: (path.stem != name, path.stem)):
            facts = _constants(path)
            if "SOURCE" in facts:
                module = f"{package}.{init.parent.name}.{path.stem}"
                source = facts["SOURCE"] or ""
                entries.append(Entry(module, facts["__doc__"], facts.get("SECONDS"), path.stem == name, source))
    return entries


def flagship(family: str) -> str | None:
    """The name of a family's flagship paper."""
    return _constants(folder_of(family) / "__init__.py").get("FLAGSHIP")


def folder_of(package: str) -> Path:
    """The folder of a package.

    Raises:
        BadInput: when there is no such package.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise BadInput(f"experiment: got {package!r}; allowed: a package of experiments")
    return Path(found.submodule_search_locations[0])


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
