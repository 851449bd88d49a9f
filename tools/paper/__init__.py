"""The paper's tables, made anew with this project's own passes: `python -m tools.paper`, docs/paper.md."""
