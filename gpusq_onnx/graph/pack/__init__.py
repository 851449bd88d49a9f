"""A model in a file of its own at the size that its sparse and quantised weights need."""
