"""TensorRT's parser and builder, each in a process of its own, and engines."""
