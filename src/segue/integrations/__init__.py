"""Segue in the tools where people label and compose, and its answers in their forms."""
