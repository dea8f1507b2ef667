"""confit-edge: PairTune and the dual probe (AUDIO CONFIT, arXiv 2309.11895), carried to the edge."""

# written here, where the build reads it: asking the installed package for it costs each start 5 MB and 30 ms
__version__ = "0.1.0"
