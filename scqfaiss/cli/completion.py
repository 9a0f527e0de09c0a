"""scqfaiss completion."""

from __future__ import annotations

import click

from .arguments import say

PROGRAM, VARIABLE = "scqfaiss", "_SCQFAISS_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options and file names of scqfaiss.

    bash: eval "$(scqfaiss completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc; fish: scqfaiss completion fish >
    ~/.config/fish/completions/scqfaiss.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    say(found(context.find_root().command, {}, PROGRAM, VARIABLE).source())
