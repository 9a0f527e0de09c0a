"""Help in groups: a command with many options shows them under headings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import click


class Grouped(click.Command):
    """A command whose help shows its options by `groups`, heading -> names of parameters; what none names comes under Options."""

    groups: ClassVar[Mapping[str, Sequence[str]]] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {str(p.name): p.get_help_record(ctx) for p in self.get_params(ctx)}
        named = {name for names in self.groups.values() for name in names}
        for heading, names in {**self.groups, "Options": [n for n in records if n not in named]}.items():
            shown = [record for name in names if (record := records.get(name)) is not None]
            if shown:
                with formatter.section(heading):
                    formatter.write_dl(shown)


def grouped(groups: Mapping[str, Sequence[str]]) -> Callable[[Callable[..., Any]], click.Command]:
    """A decorator: click.command() whose help is in groups."""
    return click.command(cls=type("GroupedCommand", (Grouped,), {"groups": groups}))
