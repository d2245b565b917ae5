"""What a training step needs on machines that are not here, asked of their compiler."""
