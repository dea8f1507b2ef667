"""Stage 1: losses, mining, batches and the training of an encoder; and what teaches a smaller one."""
