"""Query-driven summaries in the document's own words, at search-engine speed."""
