"""Tools for a user's own files: ``python -m dynamics.tools coordinate-check MODULE:FUNCTION``."""

import sys

from dynamics.tools.command import tools_main

if __name__ == "__main__":
    sys.exit(tools_main(sys.argv[1:]))
