"""Segue as a model of other evaluation harnesses."""
