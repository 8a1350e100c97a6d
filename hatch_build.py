"""The package page's README: that of the repository, its links and pictures absolute."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute(text: str, repository: str) -> str:
    """``text`` with every relative link and picture of markdown or HTML on the repository's pages; code stays."""

    def placed(found: re.Match) -> str:
        before, target, after = found.groups()
        kind = "raw" if target.partition("#")[0].endswith((".png", ".svg", ".gif", ".jpg", ".webp")) else "blob"
        return f"{before}{repository}/{kind}/HEAD/{target}{after}"

    link = r"(\]\(|(?:src|srcset|href)=\")(?![a-z]+:|#|/)([^)\"\s]+)([)\"])"
    code = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
    parts = code.split(text)
    parts[::2] = [re.sub(link, placed, part) for part in parts[::2]]
    return "".join(parts)


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, metadata["urls"]["Repository"]),
        }
