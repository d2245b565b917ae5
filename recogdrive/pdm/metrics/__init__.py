"""The sub-scores of the PDM score, one a file."""
