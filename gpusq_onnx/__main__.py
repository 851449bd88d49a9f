"""`python -m gpusq_onnx` is `gpusq-onnx`."""

import sys

from gpusq_onnx.cli import main

sys.exit(main())
