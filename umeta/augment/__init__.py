"""Augmentations of batches of images (one file each): `augment(x [m, C, H, W], u [m, randoms]) -> [m, C, H, W]`.

The randomness comes in as uniform numbers in [0, 1), so that a view is a function of its counter and of nothing else.
"""
