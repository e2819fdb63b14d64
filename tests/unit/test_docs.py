"""The documentation points at what exists, and the README is short and says what was measured."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "web" / "docs").glob("*.md")]
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
CODE = re.compile(r"`((?:unlearn|kernels|nodes|testbed|tools|tests|benchmarks|docs|web)/[\w./-]*)`")
SYMBOL = re.compile(r"`((?:unlearn|kernels|nodes|testbed)/[\w/]+\.py):(\w+(?:\.\w+)?)`")


def test_there_are_pages_to_look_at():
    assert len(PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_of_the_repository_exists(page):
    for path in CODE.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


def names_in(file: Path) -> set[str]:
    """Top-level names of a module, and its classes' methods and fields as `Class.name`."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{part.name}"
                for part in node.body
                if isinstance(part, ast.FunctionDef)
            }
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_architecture_page_names_functions_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    symbols = SYMBOL.findall(text)
    assert len(symbols) > 20
    for file, name in symbols:
        assert name in names_in(ROOT / file), f"{file}:{name}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1500


def test_every_figure_of_the_readme_stands_in_a_results_page():
    results = "\n".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "results").glob("*.md")
    )
    known = set(re.findall(r"\d+\.\d+", results))
    table = README[README.index("## How well it works") : README.index("## Limits")]
    figures = set(re.findall(r"\d+\.\d+", table))
    assert figures and figures <= known, figures - known


def test_every_results_page_says_how_its_figures_were_made():
    for page in (ROOT / "docs" / "results").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if page.name != "README.md":
            assert "Command:" in text and re.search(r"[Cc]ommits? [0-9a-f]{7}", text), page.name
            assert re.search(r"20\d\d-\d\d-\d\d", text), page.name
