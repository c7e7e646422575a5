"""What a request cost and where its time went: records, tables, pages and traces."""
