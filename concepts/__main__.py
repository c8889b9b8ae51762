"""Command line: `python -m concepts train FOLDER --name rex --class dog`."""

from __future__ import annotations

import typer

from concepts import data_commands, library_commands, train_command

app = typer.Typer(
    help="Teach a base new concepts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _main() -> None:
    """Teach a base new concepts."""


train_command.register(app)
data_commands.register(app)
library_commands.register(app)


def main() -> None:
    """Entry of `python -m concepts`."""
    app()


if __name__ == "__main__":
    main()
