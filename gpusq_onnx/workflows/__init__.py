"""What each verb does, one a file, with no terminal: the command line and the Python API are two callers of it.

A workflow takes models as paths, `onnx.ModelProto` or `graph.model.Model`, data as a path, options or arrays, and gives
back plain dataclasses. It prints nothing, and reads no environment variable but those of `runtime.crew`; what somebody
should be warned of goes to the callback `warn`. Errors are those of `gpusq_onnx.errors`.
"""
