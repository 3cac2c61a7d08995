"""Training: the state, the optimiser, the step, and the loop around it."""
