"""HTML, Markdown and terminal views of the records."""
