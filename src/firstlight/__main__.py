"""The program ``firstlight``, or ``python -m firstlight``: the command line."""

import signal


def main() -> None:
    """Import the command line and run it. Until it can say what Ctrl-C does, that just ends it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from firstlight.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
