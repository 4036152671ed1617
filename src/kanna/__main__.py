"""The program `kanna`, and `python -m kanna`."""

import os
import sys

# Threads of OpenMP that wait for work spin by default, at the cost of whoever else computes on the machine,
# and of themselves. It is read once, when torch is loaded; what the user has set stands.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def run() -> int:
    """Run the program on the words of the command line, with threads that sleep while they wait.

    Returns:
        The exit code.
    """
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
    from kanna.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
