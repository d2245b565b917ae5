"""Images and conversations in, batches for a vision-language model out."""
