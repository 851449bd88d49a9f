"""The command line: typer and rich, and nothing that a library user would miss.

`main` is the entry point `gpusq-onnx`. Verbs live one a file and import their work inside the function that does it, so
that `--help` needs typer alone (0.3 s at most, tested).
"""

from gpusq_onnx.cli.app import main

__all__ = ["main"]
