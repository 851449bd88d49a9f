"""The paper's models as ONNX files, exported on demand, and an independent count of a model's products."""
