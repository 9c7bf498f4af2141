"""Runs a stack in the foreground until SIGINT or SIGTERM."""

from __future__ import annotations

import signal

from rich.console import Console
from rich.markup import escape

from launcher.local.banner import print_banner
from launcher.local.errors import PreflightError, StartCancelledError, StartError
from launcher.local.stack import Stack


def serve(stack: Stack, console: Console) -> int:
    """Starts the stack and stops it at the first signal; a second one kills both servers.

    Returns the exit status: 0, or 1 if the stack did not start. Call it in the main thread.
    """
    _install_signal_handlers(stack)
    try:
        with stack.running():
            print_banner(
                console,
                base_url=stack.base_url,
                models=stack.model_names,
                api_key=stack.api_key,
                key_file=stack.key_file,
                log_dir=stack.log_dir,
            )
            stack.stop_requested.wait()
            console.print("Stopping. Running requests finish first; press Ctrl-C again to end them now.")
    except (PreflightError, StartError) as error:
        print_not_started(console, str(error), log_tail=getattr(error, "log_tail", ""))
        return 1
    except StartCancelledError:
        console.print("Stopped.")
    return 0


def print_not_started(console: Console, reason: str, *, log_tail: str = "") -> None:
    """Prints the reason last, below the end of a log, and a blank line that sets it apart from make's own error."""
    if log_tail:
        console.print(f"[dim]{escape(log_tail)}[/]\n", highlight=False, soft_wrap=True)
    console.print(f"[bold red]Not started.[/] {escape(reason)}\n", highlight=False, soft_wrap=True)


def _install_signal_handlers(stack: Stack) -> None:
    # The handler only sets an event: an exception raised from it could surface while a lock is held, and be lost.
    def stop(_signal: int, _frame: object) -> None:
        if stack.stop_requested.is_set():
            for child in (stack.frontend, stack.triton):
                if child is not None:
                    child.kill()
        stack.stop_requested.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
