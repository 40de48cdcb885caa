"""Measures how much selecting epochs or configs on the test set would inflate accuracies."""
