"""Experiments by the names of their modules: found in files, and the same one however a run was started.

Ours are ``dynamics.experiments.FAMILY.PAPER``. In a checkout Python also knows them as ``experiments.FAMILY.PAPER``,
under which runs of earlier versions were stored.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, ModuleType

from dynamics.runs.durable.errors import BadInput

EXPERIMENTS = "dynamics.experiments"
CHECKOUT = "experiments"


def own_name(name: str) -> str:
    """The name under which an experiment is imported and stored: ours, unless ``experiments`` is the user's package.

    Example:
        >>> own_name("experiments.grokking.lazy_to_rich")
        'dynamics.experiments.grokking.lazy_to_rich'
        >>> own_name("decay.py")
        'decay.py'
    """
    if name.partition(".")[0] != CHECKOUT or name.endswith(".py"):
        return name
    file = file_of(name)
    return f"dynamics.{name}" if file is None or _folder() in Path(file).resolve().parents else name


class _AsWritten(importlib.machinery.SourceFileLoader):
    """Python trusts bytecode by the source's size and the second of its time; an edit may change neither."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def module_in(file: str) -> ModuleType:
    """What a Python file now says, run as the module of the file's name.

    Raises:
        OSError: where it cannot be read.
    """
    name = Path(file).stem
    spec = importlib.util.spec_from_loader(name, _AsWritten(name, str(Path(file).absolute())))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def package_of(name: str) -> tuple[str, list[str]]:
    """The package of experiments in a module's name, and what follows it.

    Example:
        >>> package_of("dynamics.experiments.grokking.lazy_to_rich")
        ('dynamics.experiments', ['grokking', 'lazy_to_rich'])
        >>> package_of("ours.decay")
        ('ours', ['decay'])
    """
    if name == EXPERIMENTS or name.startswith(f"{EXPERIMENTS}."):
        return EXPERIMENTS, name.split(".")[2:]
    package, *parts = name.split(".")
    return package, parts


def file_of(module: str) -> str | None:
    """The file of a module by its dotted name (or file), found without importing anything that is not ours."""
    if module.endswith(".py"):
        return module
    package, parts = package_of(module)
    if package == EXPERIMENTS:
        path = _folder().joinpath(*parts)
        found = path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")
        return str(found) if all(part.isidentifier() for part in parts) and found.is_file() else None
    places, spec = None, None
    for part in module.split("."):  # by its own name alone: a folder without __init__.py would ask for its parent
        spec = importlib.machinery.PathFinder.find_spec(part, places)
        if spec is None:
            return None
        places = spec.submodule_search_locations
    return None if spec is None else spec.origin


def refuse_unknown(package: str) -> None:
    """Ends ``python -m PACKAGE.NAME`` where there is no such NAME with those that are like it.

    Called while Python looks for the module that it was told to run, when ``sys.argv[0]`` is ``-m``; at other times it
    does nothing.
    """
    words = sys.orig_argv
    name = words[words.index("-m") + 1] if sys.argv[:1] == ["-m"] and "-m" in words[:-1] else package
    if not name.startswith(f"{package}.") or file_of(own_name(name)) is not None:
        return
    wanted, folder = name.removeprefix(f"{package}."), _folder()
    known = [".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.glob("*/[!_]*.py")]
    print(f"error: experiment: got {name!r}; allowed: those that python -m {package} lists{like(wanted, known)}",
          file=sys.stderr)  # fmt: skip
    sys.exit(BadInput.code)


def like(wanted: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with what resembles a name among ``FAMILY.PAPER``, their families and papers, or nothing.

    Example:
        >>> like("groking.lazy", ["grokking.lazy_to_rich", "depth.length"])
        '; did you mean grokking.lazy_to_rich or grokking?'
        >>> like("x", ["grokking.lazy_to_rich"])
        ''
    """
    meant: dict[str, str] = {}
    for name in known:
        meant |= {name: name, name.rpartition(".")[2]: name}
        meant.setdefault(name.partition(".")[0], name.partition(".")[0])
    close = difflib.get_close_matches(wanted.replace("-", "_"), meant, n=2, cutoff=0.65)
    found = list(dict.fromkeys(meant[name] for name in close))
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _folder() -> Path:
    """The folder of our experiments."""
    return Path(importlib.import_module(EXPERIMENTS).__path__[0])
