"""No product file over 400 lines, no function over 60: what is longer does more than one thing. (Complexity: ruff, C901.)"""

import ast
import re
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "scqfaiss"
FILE_LINES, FUNCTION_LINES = 400, 60

# What may be longer or more complex, by name, each with its reason in a comment above it in the file.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
COMPLEX_FUNCTIONS: set[str] = set()


@cache
def functions(path):
    """(name, first line, last line) of every function of a file, nested ones too; decorators count."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found.append((f"{path.relative_to(PACKAGE)}:{node.name}", first, node.end_lineno))
    return found


def test_files_are_small():
    lines = {str(p.relative_to(PACKAGE)): len(p.read_text("utf-8").splitlines()) for p in PACKAGE.rglob("*.py")}
    assert len(lines) > 50
    assert {name for name, n in lines.items() if n > FILE_LINES} == LONG_FILES


def test_functions_are_small():
    found = [f for p in PACKAGE.rglob("*.py") for f in functions(p)]
    assert len(found) > 500
    assert {name for name, first, last in found if last - first >= FUNCTION_LINES} == LONG_FUNCTIONS


def test_what_is_more_complex_is_listed():
    rules = (PACKAGE.parent / "ruff.toml").read_text("utf-8")
    assert "C90" in rules and re.search(r"max-complexity = 15\b", rules)
    allowed = set()
    for path in PACKAGE.rglob("*.py"):
        marked = {i for i, line in enumerate(path.read_text("utf-8").splitlines(), 1) if "noqa: C901" in line}
        allowed |= {name for name, first, last in functions(path) if marked & set(range(first, last + 1))}
    assert allowed == COMPLEX_FUNCTIONS


def test_the_reader_of_functions_sees_nested_and_decorated_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text(
        "@x\ndef f():\n    def g():\n        pass\n\n\nclass C:\n    async def h(self):\n        pass\n"
    )
    assert sorted(functions(tmp_path / "a.py")) == [("a.py:f", 1, 4), ("a.py:g", 3, 4), ("a.py:h", 8, 9)]
