"""The command's root, and what all its commands share: `--json`, own options, where results may be written."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from broadsheet import __version__
from broadsheet.console import InputError


class LightGroup(TyperGroup):
    """A group whose commands get texts, and values that are not given, as they are.

    typer reads each through pydantic, whose import takes longer than most commands; numbers and choices still go there.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _lighten(self, ctx)
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _lighten(command, ctx)
        return command


def _lighten(command: Any, ctx: Any) -> None:
    for param in command.get_params(ctx):  # `--help` among them
        # Older typers have no such descriptor, and read without pydantic.
        if hasattr(param, "type_descriptor") and "process_value" not in vars(param):
            param.process_value = partial(_processed, param, param.process_value)


def _processed(param: Any, process: Callable[[Any, Any], Any], ctx: Any, value: Any) -> Any:
    """A parameter's value, by typer's own `process` only where there is something to read, or to miss."""
    left_out = value is None and not (param.required or param.multiple or param.nargs != 1)
    if left_out or type(value) is param.type_descriptor.annotation:
        return param.callback(ctx, param, value) if param.callback else value
    return process(ctx, value)


app = typer.Typer(
    name="broadsheet",
    cls=LightGroup,
    help="Every paper on one page of 79 papers about LLMs for text: run it on your model and your data, "
    "and see in one run, against the plain baseline, whether it helps.",
    epilog="Start with: broadsheet demo",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"broadsheet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help='Options of commands, a table each, in TOML or YAML: [search] mode = "bm25".'),
    ] = None,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
    if config is not None:
        from broadsheet.configs import read_config

        context.default_map = read_config(config)


def own_options(context: typer.Context, kind: type) -> tuple[dict[str, Any], list[str]]:
    """Values of a class's options that a command was given, as `configs.given` returns them."""
    from broadsheet import configs
    from broadsheet.options import describe

    of_command = {parameter.name for parameter in context.command.params}
    table = {name: value for name, value in (context.default_map or {}).items() if name not in of_command}
    known = [row.name.removeprefix("--").replace("-", "_") for row in describe(kind)]
    return configs.given(context.args, known, table)


class OwnOptions(TyperCommand):
    """A command whose first argument names a class with options of its own: `--help` lists those too."""

    def own(self, name: str) -> type | None:
        """The class that `name` stands for; None where it has none."""
        raise NotImplementedError

    def example(self, name: str, kind: type) -> str:
        """A command that uses the class that `name` stands for; empty: the epilog's."""
        return ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self._named = next((each for each in args if not each.startswith("-")), "")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        from broadsheet.options import describe

        super().format_options(ctx, formatter)
        kind = self.own(self._named) if self._named else None
        if kind is not None:
            with formatter.section(f"Options of {self._named}"):
                rows = [(f"{row.name} {row.value}".strip(), told(row)) for row in describe(kind)]
                formatter.write_dl([*rows, ("--config FILE", "These options from a TOML or YAML file, or a report.")])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        kind = self.own(self._named) if self._named else None
        example = self.example(self._named, kind) if kind is not None else ""
        if not example:
            super().format_epilog(ctx, formatter)
            return
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"Example: {example}")


def told(row: Any) -> str:
    """An option's help with its default: `"Pairs of texts. (60; with --quick 20)"`."""
    return f"{row.help} ({row.default})" if row.default else str(row.help)


def writable(folder: Path) -> None:
    """Refuse before hours of work, not after, a folder that the report cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}; give another folder with --out") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write to {folder}; give another folder with --out")
