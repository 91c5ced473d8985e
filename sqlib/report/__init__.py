"""What is seen: figures, tables, sentences, pages. It reads result files and trains nothing."""
