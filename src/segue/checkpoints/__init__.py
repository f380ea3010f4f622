"""Model folders and checkpoint files: what one is and needs, read, converted, merged and written whole."""
