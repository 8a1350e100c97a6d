"""Gathers the site's pages from what is there: README, documents, notebooks, experiments, public names."""

from __future__ import annotations

import ast
import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import api
import nbformat

from dynamics.runs.command.discover import Entry, gallery
from dynamics.runs.command.gallery import OPEN, figure_file, of_tested, others, title
from dynamics.runs.durable.files import read_json

BAR = ["docs/install", "docs/first-steps", "docs/index", "gallery/index", "notebooks/index", "api/index"]
TOP = ["CHANGELOG", "CONTRIBUTING"]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]*)(#[^)]*)?\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def write(root: Path, source: Path) -> None:
    """Writes every page under ``source``, laid out as the repository is, so that its links hold."""
    pages = {
        "index.md": (root / "README.md").read_text().partition(OPEN)[0]
        + "The [gallery](gallery/index.md) has them all."
    }
    pages |= {f"{name}.md": (root / f"{name}.md").read_text() for name in TOP}
    pages |= {f"docs/{path.name}": path.read_text() for path in sorted((root / "docs").glob("*.md"))}
    tables = {"index.md": toctree([*BAR, *TOP]), "docs/index.md": guides(pages)}
    for name, text in pages.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(at_home(root, name, text) + tables.get(name, ""))
    shutil.copytree(root / "docs" / "gallery", source / "docs" / "gallery")
    write_gallery(root, source / "gallery")
    write_notebooks(root, source / "notebooks")
    write_reference(source / "api")


def at_home(root: Path, name: str, text: str) -> str:
    """The text of a page with links to folders and to files that the site does not hold turned to where they are."""

    def turned(found: re.Match) -> str:
        target = ((root / name).parent / found[1]).resolve()
        if not target.is_relative_to(root) or not target.exists():
            return found[0]  # which Sphinx complains about
        inside = target.relative_to(root)
        kept = [*(f"{one}.md" for one in TOP), "docs", "notebooks"]
        if str(inside) == "README.md":
            return found[0].replace("README.md", "index.md")
        if target.is_dir() and str(inside) in kept:
            return f"]({found[1].rstrip('/')}/index.md)"
        if inside.parts[0] in kept and target.suffix in (".md", ".ipynb", ".webp"):
            return found[0]
        return f"]({repository(root)}/{'tree' if target.is_dir() else 'blob'}/main/{inside}{found[2] or ''})"

    parts = FENCED.split(text)
    return "".join(part if number % 2 else LINK.sub(turned, part) for number, part in enumerate(parts))


def repository(root: Path) -> str:
    """Where the sources are, as the package says."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def toctree(pages: list[str], *, caption: str = "", hidden: bool = True) -> str:
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden
    return "\n\n```{toctree}\n" + "\n".join([*options, ":maxdepth: 1", "", *pages]) + "\n```\n"


def guides(pages: dict[str, str]) -> str:
    """The documents in the order and under the headings of their index, and after them those it does not name."""
    _, *sections = re.split(r"^## (.*)$", pages["docs/index.md"], flags=re.MULTILINE)
    left = [Path(name).stem for name in pages if name.startswith("docs/") and f"{name[:-3]}" not in BAR]
    out = ""
    for heading, body in zip(sections[::2], sections[1::2], strict=True):
        named = [page for page in dict.fromkeys(re.findall(r"\]\(([\w-]+)\.md", body)) if page in left]
        left = [page for page in left if page not in named]
        out += toctree(named, caption=heading) if named else ""
    return out + (toctree(left, caption="More") if left else "")


def write_gallery(root: Path, folder: Path) -> None:
    """A page an experiment, and one with all figures."""
    folder.mkdir()
    entries, results = gallery(), read_json(root / "docs" / "gallery.json", {})
    families: dict[str, list[Entry]] = {}
    for entry in entries:
        families.setdefault(entry.family.rpartition(".")[2].replace("_", " ").capitalize(), []).append(entry)
        (folder / f"{entry.experiment}.md").write_text(experiment(root, entry, results.get(entry.experiment)))
    lines = ["# Gallery", "", f"{len(entries)} experiments, each with its theory laid over the measurement."]
    for family, members in families.items():
        lines += ["", f"## {family}", "", "````{container} gallery", *(card(root, entry) for entry in members), "````"]
        lines += [toctree([entry.experiment for entry in members], caption=family)]
    (folder / "index.md").write_text("\n".join(lines))


def card(root: Path, entry: Entry) -> str:
    """An experiment among the others: its figure and what it shows."""
    picture, page = figure_file(root, entry.experiment), f"{entry.experiment}.md"
    figure = f"[![{entry.experiment}](../docs/gallery/{picture.name})]({page})\n\n" if picture.is_file() else ""
    return f"```{{container}} experiment\n{figure}[`{entry.experiment}`]({page}) {api.escaped(title(entry))}\n```"


def experiment(root: Path, entry: Entry, found: dict | None) -> str:
    """One experiment: its figure, its claims, how to run it, what its docstring says."""
    path = Path("experiments", *entry.experiment.split(".")).with_suffix(".py")
    about = (ast.get_docstring(ast.parse((root / path).read_text())) or "").partition("\n\n")[2]
    picture = figure_file(root, entry.experiment)
    held = verdict(found)
    seconds = f" The quick preset takes about {entry.seconds:.0f} s on two CPU cores." if entry.seconds else ""
    return "\n\n".join(
        [
            f"# {entry.experiment}",
            f"**{api.escaped(title(entry))}**",
            api.escaped(entry.source),
            f"![The figure of {entry.experiment}](../docs/gallery/{picture.name})" if picture.is_file() else "",
            held + seconds,
            "\n".join(f"- `--preset {name}`: {verdict(one)}{took(one)}" for name, one in others(found).items()),
            f"```console\ndynamics run {entry.experiment}\n```",
            api.docstring(about),
            f"[Source]({repository(root)}/blob/main/{path.as_posix()})",
        ]
    )


def verdict(found: Mapping[str, Any] | None) -> str:
    """What came of the claims of a run, in a sentence or two."""
    if not found or "held" not in found:
        return "Not run yet."
    said = f"{of_tested(found)} claims held, {found['rejected']} of {found['rivals']} rivals were rejected."
    failing = "; ".join(api.escaped(name) for name in found.get("fails", ()))
    return said + (f" What failed: {failing}." if failing else "")


def took(found: Mapping[str, Any]) -> str:
    """How long a run was, where that is known."""
    seconds = found.get("seconds")
    if seconds is None:
        return ""
    return f" It took {seconds:.0f} s." if seconds < 90 else f" It took {seconds / 60:.0f} minutes."


def write_notebooks(root: Path, folder: Path) -> None:
    """The notebooks with their output and a link that opens each in Colab, and a page that lists their questions."""
    folder.mkdir()
    lines = ["# Notebooks", "", "Each is shown with its output and takes no more than 90 s on two CPU cores.", ""]
    paths = sorted((root / "notebooks").glob("*.ipynb"), key=lambda path: int(path.name.partition("_")[0]))
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        head, _, rest = notebook.cells[0].source.partition("\n")
        place = f"{repository(root).removeprefix('https://')}/blob/main/notebooks/{path.name}"
        colab = place.replace("github.com", "https://colab.research.google.com/github", 1)
        notebook.cells[0].source = f"{head}\n\n[Open in Colab]({colab})\n{rest}"
        nbformat.write(notebook, folder / path.name)
        question = re.search(r"\*\*Question\.\*\*(.*?\?)(?=\s|$)", rest, re.DOTALL)
        asked = " ".join(question[1].split()) if question else ""
        lines += [f"- [{head.lstrip('# ')}]({path.name}). {asked} [Open in Colab]({colab})"]
    (folder / "index.md").write_text("\n".join(lines) + toctree([path.stem for path in paths]))


def write_reference(folder: Path) -> None:
    """A page a public module."""
    folder.mkdir()
    names = [module.__name__ for module in api.public_modules()]
    for module in api.public_modules():
        (folder / f"{module.__name__}.md").write_text(api.page(module))
    text = "# Reference\n\nEvery public name, by module. The tests execute every example.\n"
    (folder / "index.md").write_text(text + toctree(names, hidden=False))
