"""Stage 2: probes on the embeddings of a frozen encoder, and the metrics they are judged by."""
