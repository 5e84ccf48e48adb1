"""What is done with whole studies: start, continue, compare, repair."""
