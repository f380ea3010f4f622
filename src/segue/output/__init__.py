"""What people look at and other programs read: masks, overlays, result files and pages."""
