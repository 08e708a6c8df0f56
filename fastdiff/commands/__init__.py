"""The sub-commands of `fastdiff`, a module for each group, and what they share."""

import functools
import os

import typer
from rich.console import Console
from rich.markup import escape

out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)


def plainly(command):
    """A command whose errors are one red line. FASTDIFF_TRACEBACK=1 shows where they come from."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt as stop:
            err.print(f"[yellow]{escape(str(stop) or 'interrupted')}[/]")
            raise typer.Exit(130) from None
        except Exception as error:
            if os.environ.get("FASTDIFF_TRACEBACK") or isinstance(error, typer.Exit | typer.Abort | typer.BadParameter):
                raise
            text = " ".join(str(error).split()) or type(error).__name__
            err.print(f"[bold red]{escape(text)}[/]")
            raise typer.Exit(1) from None

    return run


def read_shape(text: str | None):
    """The shape that a text such as 128x128 says; None stays None."""
    if text is None:
        return None
    try:
        return tuple(int(n) for n in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"a shape looks like 128x128, not {text!r}") from None
