"""The `confit-edge` command, and `python -m confit_edge VERB` for launchers of several processes such as `torchrun`."""

import sys


def main() -> None:
    """Run the command. Loading it takes a tenth of a second, in which Ctrl-C must end it as cleanly as later."""
    try:
        from confit_edge.cli import main as run
    except KeyboardInterrupt:
        print("confit-edge: stopped", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
