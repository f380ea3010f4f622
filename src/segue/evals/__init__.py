"""Evaluation: metrics as pure functions of predictions and truth."""
