"""confit-edge: PairTune and the dual probe (AUDIO CONFIT, arXiv 2309.11895) for small devices."""

from confit_runtime import __version__

__all__ = ["__version__"]
