"""`python -m confit_edge VERB`, as launchers of several processes want it: `torchrun ... -m confit_edge train ...`."""

from confit_edge.cli import main

main()
