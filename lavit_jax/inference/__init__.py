"""Sampling, beam search, guidance; tokenize, caption, answer and draw."""
