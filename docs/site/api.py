"""Reference pages as MyST Markdown: one a public module, one entry a public name, from signatures and docstrings.

A module is public when it has ``__all__``, or stands in a public package that has none (``dynamics.theory``), or is
named in ``dynamics.__all__``. Its names are those of ``__all__``, or else what it defines without an underscore. A name
that several modules export is described where it is exported next to its definition, and the others point there.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from types import ModuleType
from typing import Any, NamedTuple

import dynamics

HEADING = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Example|Reference|Cost):(?:\s+(.*))?$")
KEPT_AS_IT_IS = re.compile(r"(``.+?``|`[^`\n]+`)", re.DOTALL)


class Name(NamedTuple):
    """A public name: ``module.name``, its value, and the place ``home`` where it is described."""

    module: str
    name: str
    value: Any
    home: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


@functools.cache
def public_modules() -> tuple[ModuleType, ...]:
    """The modules whose names users import, ``dynamics`` first."""
    found = {"dynamics": dynamics}
    for info in pkgutil.walk_packages(dynamics.__path__, "dynamics."):
        parent, _, last = info.name.rpartition(".")
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        named = parent == "dynamics" and last in dynamics.__all__
        of_room = parent in found and parent != "dynamics" and not hasattr(found[parent], "__all__")
        if named or of_room or hasattr(importlib.import_module(info.name), "__all__"):
            found[info.name] = importlib.import_module(info.name)
    return tuple(found.values())


@functools.cache
def public_names() -> tuple[Name, ...]:
    """Every public name of every public module; ``home`` is the same for one object."""
    exported = [
        (module.__name__, name, getattr(module, name)) for module in public_modules() for name in _names(module)
    ]
    homes: dict[int, str] = {}
    for module, name, value in sorted(exported, key=lambda item: -_nearness(item[0], item[2])):
        homes.setdefault(id(value), f"{module}.{name}")
    return tuple(
        Name(module, name, value, value.__name__ if inspect.ismodule(value) else _home(homes, module, name, value))
        for module, name, value in exported
    )


def short_names() -> dict[str, str]:
    """What code in prose may call a public name, and its home: dotted, a class, or a word with an underscore."""
    homes: dict[str, set[str]] = {}
    for name in public_names():
        homes.setdefault(name.path, set()).add(name.home)
        homes.setdefault(name.path.removeprefix("dynamics."), set()).add(name.home)
        homes.setdefault(name.name, set()).add(name.home)
    clear = {word: found.pop() for word, found in homes.items() if len(found) == 1}
    return {word: home for word, home in clear.items() if "." in word or "_" in word or word[0].isupper()}


def page(module: ModuleType) -> str:
    """The module's page."""
    name = module.__name__
    names = [one for one in public_names() if one.module == name]
    rooms = [one.value for one in names if inspect.ismodule(one.value)]
    rooms += [one for one in public_modules() if one.__name__.rpartition(".")[0] == name and one not in rooms]
    lines = [f"# {name}", f"```{{py:module}} {name}\n```", prose(module.__doc__ or "")]
    lines += ["\n".join(f"- {{py:mod}}`{one.__name__}`: {_first(one.__doc__)}" for one in rooms)]
    lines += [entry(one) for one in names if not inspect.ismodule(one.value)]
    return "\n\n".join(lines) + "\n"


def entry(name: Name) -> str:
    """One name as a directive of Sphinx's Python domain."""
    kind = "class" if inspect.isclass(name.value) else "function" if callable(name.value) else "data"
    of_others = not (getattr(name.value, "__module__", None) or "dynamics").startswith("dynamics")
    if of_others and hasattr(name.value, "__qualname__"):
        return _directive("data", name.name, f"``{name.value.__module__}.{name.value.__qualname__}``")
    what = name.name + ("" if kind == "data" else signature(name.value))
    if name.home != name.path:
        text = f"{_first(_doc(name))}\n\nDescribed as {{py:obj}}`{name.home}`."
        return _directive(kind, what, text)
    body = docstring(_doc(name))
    if kind == "class":
        body = "\n\n".join([body, *_methods(name.value)])
    return _directive(kind, what, body)


def docstring(doc: str) -> str:
    """A docstring of the house as Markdown: prose, formulas and the named sections."""
    out, lines = [], doc.splitlines()
    start = number = 0
    while number < len(lines):
        found = HEADING.match(lines[number])
        if not found:
            number += 1
            continue
        out.append(prose("\n".join(lines[start:number])))
        title, text = found[1], [found[2]] if found[2] else []
        inline, number = bool(text), number + 1
        while number < len(lines) and (lines[number].strip() if inline else not HEADING.match(lines[number])):
            if not inline and lines[number].strip() and not lines[number].startswith(" "):
                break
            text.append(lines[number])
            number += 1
        out.append(_section(title, text, inline))
        start = number
    return "\n\n".join(part for part in [*out, prose("\n".join(lines[start:]))] if part.strip())


def prose(text: str) -> str:
    """Text with Markdown's own signs escaped outside code; doctests and indented formulas become blocks of code."""
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    out = []
    for paragraph in paragraphs:
        body = textwrap.dedent(paragraph)
        if body.lstrip().startswith(">>>"):
            out.append(f"```pycon\n{body}\n```")
        elif paragraph.startswith("    "):
            out.append(f"```text\n{body}\n```")
        else:
            out.append(escaped(body))
    return "\n\n".join(out)


def signature(value: Any) -> str:
    """``(arguments) -> result`` as the source has it, the house's types by their homes; or an empty string."""
    value = value if inspect.isclass(value) else inspect.unwrap(value)
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    except (OSError, TypeError, SyntaxError):
        return ""
    node = _Homes(vars(inspect.getmodule(value))).visit(node)
    if isinstance(node, ast.ClassDef):
        return _fields(node)
    if not isinstance(node, ast.FunctionDef):
        return ""
    node.args.args = [one for one in node.args.args if one.arg not in ("self", "cls")]
    return f"({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


class _Homes(ast.NodeTransformer):
    """Turns names of the house's classes into the paths where they are described."""

    def __init__(self, scope: dict[str, Any]):
        self.scope = scope

    def visit_Name(self, node: ast.Name) -> ast.AST:
        value = self.scope.get(node.id)
        home = _class_homes().get(value) if inspect.isclass(value) else None
        return ast.parse(home, mode="eval").body if home else node


@functools.cache
def _class_homes() -> dict[type, str]:
    classes = [name for name in public_names() if inspect.isclass(name.value)]
    return {name.value: name.home for name in classes if name.value.__module__.startswith("dynamics.")}


def _names(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    of_module = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return [name for name in of_module if not name.startswith("_")]


def _nearness(module: str, value: Any) -> int:
    """How far the exporting module's name agrees with the defining one's; of equal ones the shorter counts more."""
    defined = (getattr(value, "__module__", "") or "").split(".")
    parts = module.split(".")
    common = next(
        (i for i, (a, b) in enumerate(zip(parts, defined, strict=False)) if a != b), min(len(parts), len(defined))
    )
    return common * 10 - len(parts)


def _home(homes, module, name, value):
    small = isinstance(value, int | float | str | bool | type(None))  # equal constants are no one object
    return f"{module}.{name}" if small else homes[id(value)]


def _doc(name: Name) -> str:
    if inspect.isclass(name.value) or callable(name.value):
        doc = inspect.getdoc(inspect.unwrap(name.value) if not inspect.isclass(name.value) else name.value) or ""
        return "" if doc.startswith(f"{name.name}(") else doc
    return ""


def _methods(cls: type) -> list[str]:
    out = []
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        getter = function.fget if isinstance(function, property) else function
        if name.startswith("_") or not inspect.isfunction(getter) or not inspect.getdoc(getter):
            continue
        kind = "property" if isinstance(function, property) else "method"
        what = name + ("" if kind == "property" else signature(getter))
        out.append(_directive(kind, what, docstring(inspect.getdoc(getter) or ""), fence="`" * 4))
    return out


def _fields(node: ast.ClassDef) -> str:
    made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    if made:
        made[0].args.args = made[0].args.args[1:]
        return f"({ast.unparse(made[0].args)})"
    fields = [
        one for one in node.body if isinstance(one, ast.AnnAssign) and not ast.unparse(one.target).startswith("_")
    ]
    return f"({', '.join(ast.unparse(one) for one in fields)})" if fields else ""


def _section(title: str, text: list[str], inline: bool) -> str:
    head = "**Arguments**" if title == "Args" else f"**{title}**"
    if inline:
        return f"{head}: {escaped(' '.join(text))}"
    body = textwrap.dedent("\n".join(text)).strip("\n")
    if title not in ("Args", "Attributes", "Raises"):
        return f"{head}\n\n{prose(body)}"
    items = re.split(r"\n(?=\S)", body)
    return f"{head}\n\n" + "\n".join(_item(item) for item in items)


def _item(text: str) -> str:
    name, colon, rest = text.partition(":")
    rest = prose(textwrap.dedent(rest.lstrip("\n"))) if rest.startswith("\n") else prose(_flat(rest))
    return (
        "- " + textwrap.indent(f"`{name}`: {rest.strip()}" if colon and "`" not in name else prose(text), "  ").lstrip()
    )


def _flat(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def escaped(text: str) -> str:
    """A paragraph without Markdown's meanings, code and lists (which begin it, or follow a colon) aside."""
    listed = re.search(r"(^|:\n)\s*(- |1\. )", text)
    parts = KEPT_AS_IT_IS.split(text)
    for number in range(0, len(parts), 2):
        line_starts = r"(?:^|(?<=\n))" if number == 0 else r"(?<=\n)"
        part = re.sub(r"([<*_\[\]{$~])", r"\\\1", parts[number])
        part = re.sub(rf"{line_starts}([ \t]*)([#+>=])", r"\1\\\2", part)
        parts[number] = part if listed else re.sub(rf"{line_starts}([ \t]*)(1?)([-.])(?=[ -])", r"\1\2\\\3", part)
    return "".join(parts)


def _first(doc: str | None) -> str:
    return escaped(" ".join((doc or "").strip().split("\n\n")[0].split()))


def _directive(kind: str, what: str, body: str, fence: str = "`" * 5) -> str:
    return f"{fence}{{py:{kind}}} {what}\n\n{body}\n{fence}\n"
