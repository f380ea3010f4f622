"""Segue's nodes: put this folder into ComfyUI's `custom_nodes` and install segue into its environment."""

from segue.integrations.comfyui import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
