"""Evidence: arms x budgets x seeds -> results -> statistics -> comparison -> a table a person can read."""
