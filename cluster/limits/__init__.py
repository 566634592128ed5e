"""What may be spent and how fast: budgets handed out as leases, rates as token buckets. Whole numbers only."""
