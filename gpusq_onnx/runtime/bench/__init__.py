"""What is timed, and how: one backend a file."""
