"""Parts of a party's work: which requests it takes, what parties agree on, steps in company."""
