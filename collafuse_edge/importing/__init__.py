"""Networks trained with other libraries, made checkpoints of this one if they fit a plan."""
