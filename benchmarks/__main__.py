"""Measurements that compare: each runs both sides in turn in one run and writes JSON.

python -m benchmarks                  # lists them
python -m benchmarks NAME [options]   # runs one; most know --quick
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path


def listed() -> dict[str, str]:
    """Name -> first line of the docstring, of every module here that has a `main`."""
    modules = {path.stem: ast.parse(path.read_text()) for path in sorted(Path(__file__).parent.glob("*.py"))}
    return {
        name: (ast.get_docstring(tree) or "").partition("\n")[0]
        for name, tree in modules.items()
        if name != "__main__" and any(getattr(node, "name", None) == "main" for node in tree.body)
    }


def main() -> None:
    """Runs the benchmark that is named, or lists all."""
    known = listed()
    if len(sys.argv) > 1 and sys.argv[1] in known:
        sys.argv = sys.argv[1:]
        runpy.run_module(f"benchmarks.{sys.argv[0]}", run_name="__main__")
        return
    print(__doc__)
    for name, about in known.items():
        print(f"  {name:<16} {about}")
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.exit(f"There is no benchmark {sys.argv[1]!r}: give one of the above.")


if __name__ == "__main__":
    main()
