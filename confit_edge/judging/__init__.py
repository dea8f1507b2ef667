"""Evaluation of stage 2: a run compared with its start and with other runs, by its probes and by its geometry."""
