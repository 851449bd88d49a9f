"""The fuzz room: broken models, options, data, containers and reports, thrown at the command line by the thousand,
and commands that a signal meets at a random moment (`kills.py`).

`corpus/` holds models that once made the tool fail, each named after what failed; `tests/tools/test_fuzz.py` plays
them, and a slice of every target.
"""
