"""The installed command: `spectral-diffusion generate trio.safetensors "a photo of <rex>"`."""

from __future__ import annotations

import typer

from spectral_diffusion import drawing, exchange, recalling

app = typer.Typer(
    help="Pictures with taught concepts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _main() -> None:
    """Pictures with taught concepts."""


drawing.register(app)
recalling.register(app)
exchange.register(app)


def main() -> None:
    """Entry of `spectral-diffusion`."""
    app()


if __name__ == "__main__":
    main()
