"""What the file systems of an image know: which blocks are free, and where each file's content lies."""
