"""Docstrings list errors in one form, the one that tools read."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "gatekeeper_grpc"


def docstrings() -> Iterator[tuple[str, str]]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{path.relative_to(PACKAGE)}: {getattr(node, 'name', 'module')}", ast.get_docstring(node) or ""


def test_errors_are_listed_under_raises() -> None:
    assert [name for name, text in docstrings() if "Errors:" in text] == []
