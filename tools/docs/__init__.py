"""The generated parts of docs/: the reference of passes, and the two drawings. `python -m tools.docs` writes them."""
