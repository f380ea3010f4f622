"""Qwen-VL (2023): a ViT-bigG tower, a position-aware resampler and Qwen-7B; boxes and quads as text.

Source: Qwen-VL (arXiv 2308.12966) and the code that comes with its checkpoints.
"""
