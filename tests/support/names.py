"""Names that a program uses: what examples and notebooks need to run as they are pasted."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util


def undefined(code: str) -> set[str]:
    """Names that a program uses, and neither makes nor finds where it imports them from."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    imported = [
        (node, alias) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    ]
    missing = {
        alias.name
        for node, alias in imported
        if isinstance(node, ast.ImportFrom) and not stands(node.module, alias.name)
    }
    known = {*dir(builtins), *(alias.asname or alias.name for _, alias in imported)}
    known |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    known |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    known |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return missing | {name.id for name in names if isinstance(name.ctx, ast.Load)} - known


def stands(module: str | None, name: str) -> bool:
    """Whether a module has that name, or a module of its own by it."""
    return (
        hasattr(importlib.import_module(module or ""), name) or importlib.util.find_spec(f"{module}.{name}") is not None
    )
