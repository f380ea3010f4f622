"""Where things are: boxes, masks as COCO run lengths, and the marks in a model's text that point at them."""
