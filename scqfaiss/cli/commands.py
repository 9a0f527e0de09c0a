"""The group of commands. Options in, one call, no logic; imports are inside, so that --help loads neither torch nor faiss."""

from __future__ import annotations

from importlib import import_module

import click

from .. import __version__

# Command: (file in this folder, function).
COMMANDS = {
    "check": ("check", "check"),
    "train": ("train", "train"),
    "extend": ("extend", "extend"),
    "calibrate": ("calibrate", "calibrate"),
    "export": ("galleries", "export"),
    "append": ("galleries", "append"),
    "remove": ("galleries", "remove"),
    "merge": ("galleries", "merge"),
    "search": ("search", "search"),
    "evaluate": ("evaluate", "evaluate"),
    "features": ("images", "features"),
    "export-encoder": ("images", "export_encoder"),
    "info": ("inspect", "info"),
    "verify": ("inspect", "verify"),
    "compare": ("compare", "compare"),
    "compare-growth": ("compare", "compare_growth"),
    "attack": ("attack", "attack"),
    "report": ("report", "report"),
    "serve": ("serve", "serve"),
    "cluster": ("cluster", "cluster"),
    "demo": ("demo", "demo"),
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="scqfaiss")
def cli() -> None:
    """Label-aware codes for FAISS: train with labels, export one plain FAISS file, search it anywhere."""


for _name, (_file, _function) in COMMANDS.items():
    cli.add_command(getattr(import_module(f".{_file}", __package__), _function), _name)
