"""The cost of a request and where its time went: records, tables, pages and traces."""
