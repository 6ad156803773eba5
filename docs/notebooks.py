"""The notebooks as pages, run while the site is built: what stands under a cell is what this code prints.

Knows: notebooks. Does not know: what they show. It is a hook for mkdocs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook to those that mkdocs found."""
    from mkdocs.structure.files import File

    for path in sorted(FOLDER.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(path)))
    return files


def page(path: Path) -> str:
    """A notebook, run from its top, as Markdown.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    import nbformat
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import ExecutePreprocessor

    book = nbformat.read(path, as_version=4)
    ExecutePreprocessor(timeout=600, kernel_name="python3", coalesce_streams=True).preprocess(book, {"metadata": {"path": str(FOLDER)}})
    for cell in book.cells:
        if cell.cell_type == "code":  # what is said on the way is not the answer
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    text, _ = MarkdownExporter().from_notebook_node(book)
    return f"{linked(text)}\n*This page is `notebooks/{path.name}`, run while the site was built.*\n"


def linked(text: str) -> str:
    """Links as the site has them: a notebook lies beside the docs, its page among them."""
    return text.replace("](../docs/", "](../")
