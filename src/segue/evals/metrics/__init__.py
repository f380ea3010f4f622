"""Metrics: pure functions of answers and truth, one file for each way of scoring."""
