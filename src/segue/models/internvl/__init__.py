"""InternVL2.5 and InternVL3."""
