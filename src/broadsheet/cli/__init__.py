"""The command `broadsheet`."""

from broadsheet.cli.app import main

__all__ = ["main"]
