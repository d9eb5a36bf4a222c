"""Task proposers: unlabelled data in, task distribution out. One method, one file."""
