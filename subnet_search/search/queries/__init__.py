"""What is read out of a study."""
