"""What a study searches: its YAML, its search space, its metrics and samplers."""
