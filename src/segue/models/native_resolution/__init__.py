"""Families that see images at their own resolution, with positions along three axes: Qwen2.5-VL and Qwen3-VL."""
