"""Networks: what is trained and what draws. Knows nothing of privacy."""
