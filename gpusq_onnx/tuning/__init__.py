"""What a model's layers cost it when they are pruned or quantised: measured on data, and searched under a budget."""
