"""Segue: ask about images and videos in words; get words back, and the pixels they speak of."""
