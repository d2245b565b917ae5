"""What the vision-language model reads: tokens, images, conversations, and the prompts made from driving scenes."""
