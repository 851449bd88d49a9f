"""Small models of the paper's other systems, trained here, compressed, and scored before and after."""
