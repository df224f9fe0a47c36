"""Few-shot classification of images: `python -m experiments.shoestring_few_shot`."""
