"""What every other folder may use: errors, files, random numbers, search domains."""
