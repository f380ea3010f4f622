"""SAM 2 asked by language: masks on images, and objects followed through videos."""
