"""A finished trial, as a reader sees it: in the terminal, as JSON, as one HTML page."""

from broadsheet.report.html import comparison_table, terminal, write

__all__ = ["comparison_table", "terminal", "write"]
