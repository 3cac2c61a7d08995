"""The machine: whether it can run, what a step needs and takes there, and what makes it faster."""
