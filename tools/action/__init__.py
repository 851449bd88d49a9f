"""What action.yml runs beside the tool itself, with the standard library alone."""
