"""The `fiat` command, and `python -m fiat_jax`: the process as it should be started, then `cli.main`."""

import os
import sys

from fiat_jax.cli import main

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def run() -> int:
    """Run the command; on Linux, in a process whose malloc asks the kernel for huge pages.

    XLA's CPU backend allocates its temporaries anew in every step. Touched 4 KiB at a time they cost a sixth of a LoRA
    step (docs/log.md). glibc reads its tunables when a process starts and at no other time, so the process is started
    again, under the same number. Set GLIBC_TUNABLES yourself, to anything or to nothing, and it stays as it is.
    """
    if sys.platform == "linux" and TUNABLES not in os.environ:
        os.environ[TUNABLES] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return main()


if __name__ == "__main__":
    sys.exit(run())
