"""`umeta teach`: a page on this machine on which a person names classes and sorts pictures."""
