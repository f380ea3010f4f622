"""A run over many inputs: what is to be done, what is finished, and going on where it stopped."""
