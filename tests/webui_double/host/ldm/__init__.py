"""SD1.5's networks by the original's module and class names. What is inside a network follows from the shapes of a file's tensors, whatever its sizes."""
