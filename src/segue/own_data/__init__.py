"""Your own images and masks: read in any usual form, checked, and corrected."""
