"""The HTML page: blocks, and what draws them from reports, models and data."""
