"""Public datasets, one file for each form on disk; what every dataset is stands in `base`."""
