"""What turns a loss into weights."""
