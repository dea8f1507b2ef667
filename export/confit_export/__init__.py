"""Stage 3: turns a run into one ONNX file, quantised and checked, with its contract inside."""
