"""The `confit-edge` command; also `python -m confit_edge VERB`, as launchers of several processes want it: `torchrun ...`."""

import sys


def main() -> None:
    """What the command is made of takes a tenth of a second to load: Ctrl-C ends it meanwhile as it does later."""
    try:
        from confit_edge.cli import main as run
    except KeyboardInterrupt:
        print("confit-edge: stopped", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
