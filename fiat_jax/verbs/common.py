"""What the verbs share: the console, the run's other processes, the settings."""

import argparse
import sys
from collections.abc import Sequence


def open_console(quiet: bool = False):
    """Return where a verb prints: one line a line, where nobody watches a terminal."""
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty(), quiet=quiet)


def start(args: argparse.Namespace):
    """Join the run's other processes until the verb ends; return the console, on which process 0 speaks for all."""
    from fiat_jax.distributed import is_main
    from fiat_jax.experiments import runtime

    runtime.start(args.until_end)
    return open_console(quiet=not is_main())


def settings(args: argparse.Namespace, bindings: list[str], files: Sequence[str] = (), scopes: Sequence[str] = ()):
    """Return the settings of all sections that a verb may have."""
    from fiat_jax.config import Config
    from fiat_jax.experiments import sections

    return Config(sections.SECTIONS, [*files, *args.gin_file], bindings, scopes)
