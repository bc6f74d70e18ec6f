"""Data: sources -> labels -> roles and budgets, and the pure arithmetic of batches."""
