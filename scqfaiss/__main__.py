"""The program: `scqfaiss`, or `python -m scqfaiss`. Signals first, then everything that takes time to import."""

from typing import NoReturn

from . import signals


def main() -> NoReturn:
    """Run the command line."""
    signals.take()
    from .cli import program

    program.main()


if __name__ == "__main__":
    main()
