"""`fiat VERB`: dispatch, nothing else; every verb imports what it needs when it is called."""

import argparse
import contextlib
import importlib
import re
import signal
import sys
from collections.abc import Sequence

from fiat_jax.arguments import make_parser
from fiat_jax.errors import EXIT_RESTARTABLE, EXIT_USER, Interrupted, UserError

GIN_FLAG = "--gin."
OUT_IN_STORES = ("predict", "export")  # verbs whose --out may be a URL


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0, 2 for the user's mistake, 75 when interrupted and all is saved.

    A mistake of ours is an exception, with which Python ends the process with 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    bindings = [a[len(GIN_FLAG) :] for a in arguments if a.startswith(GIN_FLAG)]
    parser, plain = make_parser(), [a for a in arguments if not a.startswith(GIN_FLAG)]
    args = parser.parse_args(plain)
    action = getattr(args, "action", None)
    if action and plain[1] != action:  # argparse would forget what stands before
        parser.error(f"say `fiat {args.verb} {action}` before its options")
    action = f"{args.verb}_{action}" if action else args.verb
    try:
        with _terminable():
            if bindings and "gin_file" not in args:
                raise UserError(f"this verb takes no settings: leave out {GIN_FLAG}{bindings[0]}")
            module = importlib.import_module(f"fiat_jax.verbs.{VERBS[action]}")
            with _local(args), contextlib.ExitStack() as args.until_end:
                return getattr(module, action)(args, bindings)
    except UserError as error:
        print(f"fiat {args.verb}: {error}", file=sys.stderr)
        return EXIT_USER
    except OSError as error:
        if error.filename is None:  # not about a file: ours to explain
            raise
        print(f"fiat {args.verb}: {error.filename}: {error.strerror}; correct the path or its rights", file=sys.stderr)
        return EXIT_USER
    except Interrupted as error:
        print(f"fiat {args.verb}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"fiat {args.verb}: interrupted; the same command goes on from what is saved", file=sys.stderr)
    return EXIT_RESTARTABLE


@contextlib.contextmanager
def _local(args: argparse.Namespace):
    """Where results go into an object store, let the verb write to a local double of it."""
    with contextlib.ExitStack() as stack:
        for name in ("workdir", "out"):
            value = str(getattr(args, name, ""))
            if name == "out" and args.verb not in OUT_IN_STORES and re.search(r"\b[a-z0-9]{2,}:/", value):
                raise UserError(f"--out={value}: `fiat {args.verb}` writes local files alone")
            if "://" in value:
                from fiat_jax.remote import doubled

                folder, _, last = value.rstrip("/").rpartition("/") if name == "out" else (value, "", "")
                setattr(args, name, stack.enter_context(doubled(folder)) / last)
        yield


@contextlib.contextmanager
def _terminable():
    """Let SIGTERM do what SIGINT does: files are closed on the way out."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Its module in fiat_jax.verbs, of which each has a function of the verb's name.
VERBS = {
    "init": "tasks",
    "data_split": "tasks",
    "prompt_lint": "prompt",
    "prompt_render": "prompt",
    "prompt_try": "prompt",
    "prompt_diff": "prompt",
    "prompt_score": "prompt",
    "prompt_draft": "prompt",
    "reason": "reason",
    "reason_compare": "reason",
    "reason_verify": "reason",
    "train": "train",
    "experiment": "train",
    "report": "report",
    "evaluate": "bundle",
    "predict": "bundle",
    "export": "bundle",
    "serve": "bundle",
    "plan": "plan",
    "demo": "demo",
    "demo_build": "demo",
    "doctor": "doctor",
}
