"""Stage 1: losses, mining, batches and the training of an encoder; and distillation into a smaller one."""
