"""`mooring`, also `python -m mooring.cli`."""

from __future__ import annotations

import typer

from . import containers, engine, host


def command_line() -> typer.Typer:
    """Every command."""
    app = typer.Typer(
        name="mooring",
        help="A container engine that speaks the Docker Engine API.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    engine.register(app)
    host.register(app)
    containers.register(app)
    return app


def main() -> None:
    """Run the command line."""
    command_line()(prog_name="mooring")


if __name__ == "__main__":
    main()
