"""What usage costs: rate cards, rating, invoices. Pure functions; nothing is read or written here."""
