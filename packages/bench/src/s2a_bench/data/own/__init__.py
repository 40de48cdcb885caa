"""The user's own images: reads folders, tables and Hugging Face directories, divides them, prepares them."""
