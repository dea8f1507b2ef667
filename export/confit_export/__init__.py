"""Stage 3: a run becomes one ONNX file, quantised, checked, with its contract inside."""
