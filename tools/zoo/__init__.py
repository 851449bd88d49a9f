"""The paper's models as ONNX files, exported on demand."""
