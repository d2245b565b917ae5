"""Pure forward passes: no input or output, no optimiser, no reward."""
