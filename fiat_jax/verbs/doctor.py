"""`fiat doctor`."""

from fiat_jax.verbs.common import open_console


def doctor(args, bindings) -> int:
    """Check the machines of a run before it begins."""
    from fiat_jax.experiments.doctor import examine

    examine(args.storage, args.devices, open_console())
    return 0
