"""Image sources (one file each) and the label-free view of them that `propose` and `metatrain` get."""
