"""confit-edge: PairTune and the dual probe (AUDIO CONFIT, arXiv 2309.11895), carried to the edge."""

from importlib.metadata import version

__version__ = version("confit-edge")
