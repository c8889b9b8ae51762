"""The house rules: imports go one way, start-up is light, the README names what is there, the pins fit."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OURS = ("spectral_diffusion", "concepts", "fusion", "pages", "app", "benchmarks", "tools", "tests")
ALLOWED = {  # who may import whom, itself aside; what joins concepts and fusion is the concept file
    "spectral_diffusion": set(),
    "concepts": {"spectral_diffusion"},
    "fusion": {"spectral_diffusion"},
    "pages": {"spectral_diffusion", "concepts", "fusion"},
    "app": {"spectral_diffusion", "concepts", "fusion", "pages"},
    "benchmarks": {"spectral_diffusion", "concepts", "fusion", "tools"},
    "tools": {"spectral_diffusion", "concepts", "fusion"},
    "tests": set(OURS),
}
DISTRIBUTIONS = {"PIL": "pillow"}  # import name -> distribution name, where they differ
HEAVY = {"torch", "diffusers", "transformers", "peft", "gradio", "ray"}
LIGHT = (
    "spectral_diffusion",
    "spectral_diffusion.errors",
    "spectral_diffusion.files",
    "spectral_diffusion.ledger",
    "spectral_diffusion.__main__",
    "concepts",
    "concepts.dataset",
    "concepts.__main__",
    "fusion",
    "fusion.__main__",
    "pages.runner",
    "app",
)
MODULES_IN_README = ("spectral_diffusion", "concepts", "fusion")


@cache
def project_files() -> tuple[PurePosixPath, ...]:
    """Every file that is or would be committed."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(PurePosixPath(name) for name in names.split("\0") if name and (ROOT / name).exists())


def python_files():
    return [path for path in project_files() if path.suffix == ".py"]


def package_of(path: PurePosixPath) -> str:
    return path.parts[0].removesuffix(".py")


def imported(source: str) -> set[str]:
    """Top-level names of everything `source` imports, in functions too; relative imports stay inside."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


def imports_of(path: PurePosixPath) -> set[str]:
    return imported((ROOT / path).read_text(encoding="utf-8"))


def test_imports_are_found_wherever_they_hide():
    source = "import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    from i import j\n"
    assert imported(source) == {"a", "c", "d", "i"}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    for path in python_files():
        if package_of(path) == package:
            wrong = imports_of(path) & set(OURS) - {package} - ALLOWED[package]
            assert not wrong, f"{path} imports {sorted(wrong)}"


def test_every_python_file_lives_under_the_import_rules():
    homeless = [str(path) for path in python_files() if package_of(path) not in ALLOWED]
    assert not homeless, f"add to ALLOWED: {homeless}"


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_what_is_imported_is_declared():
    declared = {canonicalize_name(Requirement(line).name) for line in project()["dependencies"]}
    optional = {
        canonicalize_name(Requirement(line).name) for line in project()["optional-dependencies"]["ray"]
    }
    for path in python_files():
        if package_of(path) in ("spectral_diffusion", "concepts", "fusion", "pages", "app"):
            foreign = imports_of(path) - set(OURS) - sys.stdlib_module_names
            needed = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in foreign}
            assert needed <= declared | optional, f"{path} imports {sorted(needed - declared)}"


@pytest.mark.parametrize("module", LIGHT)
def test_start_up_is_light(module):
    home = PurePosixPath(module.replace(".", "/"))
    if not {home / "__init__.py", home.with_suffix(".py")} & set(project_files()):
        pytest.skip(f"{module} is not there yet")
    report = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", report], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.split() == []


def readme_tree(readme: str) -> list[str]:
    """Paths of the first fenced block after the heading `Layout`; an indent nests under the line above."""
    block = re.search(r"^#+ *Layout\b.*?^```[^\n]*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block, "the README has no fenced block after a heading 'Layout'"
    paths, open_folders = [], []
    for line in filter(str.strip, block[1].splitlines()):
        indent, word = len(line) - len(line.lstrip()), line.split()[0].rstrip("/")
        open_folders = [(depth, path) for depth, path in open_folders if depth < indent]
        path = f"{open_folders[-1][1]}/{word}" if open_folders else word
        paths.append(path)
        open_folders.append((indent, path))
    return paths


def wanted_in_tree(files: tuple[PurePosixPath, ...]) -> set[str]:
    """What the tree must name: all at the top but dot files, folders of Python, modules of our packages."""
    top = {path.parts[0] for path in files if len(path.parts) > 1 or not path.name.startswith(".")}
    code = [path for path in files if path.suffix == ".py"]
    folders = {str(path.parent) for path in code if len(path.parts) > 1}
    modules = {
        str(path)
        for path in code
        if path.parent.name in MODULES_IN_README and len(path.parts) == 2 and path.name != "__init__.py"
    }
    return top | folders | modules


def test_the_tree_is_read_by_indent_and_first_word():
    tree = "a/    all\n  b/  be\n    c.py  see\n  d.py\ne/f.py  x\n"
    readme = f"# x\n```\nno\n```\n## Layout\nwords\n\n```text\n{tree}```\n"
    assert readme_tree(readme) == ["a", "a/b", "a/b/c.py", "a/d.py", "e/f.py"]


def test_the_tree_must_name_top_folders_and_modules():
    files = tuple(
        map(PurePosixPath, ["concepts/__init__.py", "concepts/x.py", "tools/y/z.py", ".ci/run", ".z", "A"])
    )
    assert wanted_in_tree(files) == {"concepts", "concepts/x.py", "tools", "tools/y", ".ci", "A"}


def test_the_readme_tree_is_complete_and_true():
    named = set(readme_tree((ROOT / "README.md").read_text(encoding="utf-8")))
    missing = sorted(wanted_in_tree(project_files()) - named)
    unreal = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing, f"the README's Layout lacks {missing}"
    assert not unreal, f"the README's Layout names what is not there: {unreal}"


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert len({name for name, _ in found}) == len(found), "a package is pinned twice"
    return {canonicalize_name(name): version for name, version in found}


def test_every_dependency_is_pinned_within_its_range():
    for line in project()["dependencies"] + project()["optional-dependencies"]["dev"]:
        wish = Requirement(line)
        pin = pins()[canonicalize_name(wish.name)]
        assert wish.specifier.contains(pin), f"{wish} against {pin}"


def test_the_pins_install_with_plain_pip_anywhere():
    assert "torchvision" not in pins(), "ours needs none, and its builds must match torch's"
    assert not [name for name, version in pins().items() if "+" in version], "a local version is not on PyPI"


def test_ci_runs_exactly_make_test():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "make" in line] == ["make test"]
    assert "set -euo pipefail" in lines
