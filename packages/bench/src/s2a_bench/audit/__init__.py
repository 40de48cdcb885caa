"""What selecting on the test set would have added."""
