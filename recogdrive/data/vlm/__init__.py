"""Driving data as a vision-language model reads them: pictures, conversations, tokens."""
