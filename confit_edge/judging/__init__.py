"""Stage 2, judged: a run against what it is compared with, by its probes and by its geometry."""
