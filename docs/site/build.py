"""Builds the site, strictly: ``python docs/site/build.py [FOLDER]``, by default into ``build/site``.

Pages are written into ``FOLDER/source`` from what is there (README, docs, notebooks, experiments, ``__all__``), and
Sphinx makes ``FOLDER/html`` of them. Any warning is an error, and so is a public name without an entry.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import time
from pathlib import Path

import api
import pages
from sphinx.cmd.build import main as sphinx
from sphinx.util.inventory import InventoryFile

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def build(folder: Path) -> int:
    """The exit status: 0 for a site without a warning and without a gap."""
    source, html = folder / "source", folder / "html"
    for old in (source, html):
        shutil.rmtree(old, ignore_errors=True)
    pages.write(ROOT, source)
    status = sphinx(["-q", "-W", "--keep-going", "-c", str(HERE), "-d", str(folder / "cache"), str(source), str(html)])
    if status:
        return status
    missing = without_entry(html)
    for name in missing:
        print(f"{name}: got no entry in the site; allowed: one for every public name", file=sys.stderr)
    return int(bool(missing))


def without_entry(html: Path) -> list[str]:
    """The public names that the built site's inventory, ``objects.inv``, lacks."""
    inventory = InventoryFile.loads((html / "objects.inv").read_bytes(), uri="")
    entries = {name for kind, found in inventory.data.items() if kind.startswith("py:") for name in found}
    wanted = {name.home if inspect.ismodule(name.value) else name.path for name in api.public_names()}
    return sorted(wanted - entries)


if __name__ == "__main__":
    began = time.perf_counter()
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site").resolve()
    status = build(target)
    print(f"{target / 'html' / 'index.html'}: {time.perf_counter() - began:.0f} s")
    sys.exit(status)
